"""Weights alone in 4 and 8 bits: file size and speed on ONNX Runtime, and perplexity of a small language model.

    python benchmarks/weight_only.py speed [--layers 8] [--width 512] [--group 32] [--rounds 30] [--threads 1]
    python benchmarks/weight_only.py perplexity FOLDER [--rows 200] [--calibration 128] [--bits 4] [--groups 32,64]

`speed`: a LLaMA with random weights, batch 1, the forward pass of 128 tokens and of one. Ours with products of int8 and
of float32, and the file that onnxruntime's own MatMulNBitsQuantizer makes of our float file (same bits, groups,
zero points and accuracy level; the head stays float in both). Each round runs every file once, backwards the next time;
ratios are taken within a round, so that the neighbors of a shared machine slow both.

`perplexity`: FOLDER is a LLaMA in Hugging Face's format with `sampled_stories.jsonl`, rows of token `ids`. Evaluated on
the first rows, calibrated on rows from the 1,000th on, all in simulation; the last row of each table adds the 8-bit
inputs of ONNX Runtime's products.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.target import Artefact
from seatrial.deploy.machine import this_machine
from seatrial.deploy.onnxruntime import OnnxRuntime, open_session
from seatrial.quant.awq import AWQ
from seatrial.quant.gptq import GPTQ
from seatrial.quant.nearest import Nearest
from seatrial.quant.weight_only import weight_only

RTN = Nearest(bias_correction=False, equalization="none")
METHODS: dict[str, Quantizer] = {
    "round to nearest": RTN,
    "round to nearest, biases corrected": Nearest(equalization="none"),
    "GPTQ, in order, whole ranges": GPTQ(RTN, act_order=False, search=None),
    "GPTQ": GPTQ(RTN),
    "AWQ": AWQ(RTN),
    "AWQ, biases corrected": AWQ(Nearest(equalization="none")),
    "AWQ, then GPTQ": AWQ(GPTQ(RTN)),
}


def random_llama(layers: int, width: int) -> Graph:
    """Return the graph of a LLaMA with 8 heads and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    return capture(LlamaForCausalLM(config), tokens(2, 8))


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    """Return random token ids with a mask that keeps all."""
    ids = torch.randint(0, 4096, (batch, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def theirs(whole: Path, path: Path, bits: int, group: int) -> Artefact:
    """Return what onnxruntime's quantizer makes of a float file, without its head."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(whole)
    heads = [node.name for node in model.graph.node if node.op_type == "MatMul" and "lm_head" in node.name]
    quantizer = MatMulNBitsQuantizer(
        model, bits=bits, block_size=group, is_symmetric=False, accuracy_level=4, nodes_to_exclude=heads
    )
    quantizer.process()
    onnx.save(quantizer.model.model, path)  # pyright: ignore[reportAttributeAccessIssue]
    return Artefact(path, "onnx", f"w{bits}", {"layout": "NCHW"})


def files(folder: Path, graph: Graph, group: int) -> dict[str, Artefact]:
    """Return the float file, ours and theirs."""
    whole = OnnxRuntime().compile(graph, folder / "float", bits="float32")
    found = {"float": whole}
    for bits in (4, 8):
        sites = weight_only(graph, bits, group)
        rounded = realise(graph, RTN.plan(graph, [tokens(2, 8)], sites, rng=generator(0, "speed")))
        for products in ("int8", "float32"):
            target = OnnxRuntime(group_products=products)
            path = folder / f"w{bits}-{products}"
            found[f"w{bits}, {products} products"] = target.compile(rounded, path, bits=f"w{bits}")
        found[f"w{bits}, MatMulNBitsQuantizer"] = theirs(whole.path, folder / f"theirs{bits}.onnx", bits, group)
    return found


def milliseconds(sessions: Mapping[str, Any], length: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the time of each session in each round, after one round that is not counted."""
    feed = {name: value.numpy() for name, value in tokens(1, length).items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            sessions[name].run(None, feed)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(row) for name, row in times.items()}


def speed(layers: int, width: int, group: int, rounds: int, threads: int) -> None:
    """Print sizes, tokens per second and ratios."""
    graph = random_llama(layers, width)
    print(f"{layers} layers of {width}, groups of {group}, {threads} threads, {this_machine(threads).cpu}")
    print("| file | MB | tokens | tokens/s | ratio of times to float | 10th to 90th percentile |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        made = files(Path(folder), graph, group)
        sessions = {name: open_session(artefact, threads) for name, artefact in made.items()}
        for length in (128, 1):
            times = milliseconds(sessions, length, rounds)
            for name, row in times.items():
                low, middle, high = np.percentile(row / times["float"], [10, 50, 90])
                rate = 1e3 * length / np.median(row)
                size = made[name].size_bytes / 1e6
                print(f"| {name} | {size:.1f} | {length} | {rate:.0f} | {middle:.2f} | {low:.2f}..{high:.2f} |")


def batches(rows: Sequence[Sequence[int]], size: int) -> list[dict[str, Tensor]]:
    """Return rows of ids as batches that are filled up to one length."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    parts = zip(ids.split(size), mask.split(size), strict=True)
    return [{"input_ids": one, "attention_mask": other} for one, other in parts]


def perplexity(graph: Graph, rows: Sequence[Mapping[str, Tensor]]) -> float:
    """Return the exponent of the mean loss per token."""
    loss, count = 0.0, 0
    for batch in rows:
        with torch.no_grad():
            told = graph.module(*(batch[spec.name] for spec in graph.inputs))[:, :-1].log_softmax(-1)
        kept = batch["attention_mask"][:, 1:]
        loss -= float((told.gather(2, batch["input_ids"][:, 1:, None])[..., 0] * kept).double().sum())
        count += int(kept.sum())
    return math.exp(loss / count)


def compare(folder: Path, rows: int, calibration: int, bits: int, groups: Sequence[int]) -> None:
    """Print the perplexity after each method."""
    from transformers import LlamaForCausalLM

    with (folder / "sampled_stories.jsonl").open(encoding="utf-8") as file:
        ids = [json.loads(line)["ids"] for line in file]
    evaluation, seen = batches(ids[:rows], 50), batches(ids[1000 : 1000 + calibration], 32)
    graph = capture(LlamaForCausalLM.from_pretrained(folder), {k: v[:2] for k, v in seen[0].items()})
    print(f"float: {perplexity(graph, evaluation):.4f}")
    for group in groups:
        print(f"\n{bits} bits, groups of {group}\n\n| method | perplexity | seconds |\n|---|---|---|")
        rounded = graph
        for name, method in METHODS.items():
            start = time.perf_counter()
            recipe = method.plan(graph, seen, weight_only(graph, bits, group), rng=generator(0, "perplexity"))
            seconds = time.perf_counter() - start
            rounded = realise(graph, recipe)
            print(f"| {name} | {perplexity(rounded, evaluation):.4f} | {seconds:.0f} |", flush=True)
        deployed = perplexity(OnnxRuntime().simulated(rounded), evaluation)
        print(f"| the last, int8 products | {deployed:.4f} | |", flush=True)


def main() -> None:
    """Read the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    fast = parts.add_parser("speed")
    for name, value in (("layers", 8), ("width", 512), ("group", 32), ("rounds", 30), ("threads", 1)):
        fast.add_argument(f"--{name}", type=int, default=value)
    good = parts.add_parser("perplexity")
    good.add_argument("folder", type=Path)
    for name, value in (("rows", 200), ("calibration", 128), ("bits", 4)):
        good.add_argument(f"--{name}", type=int, default=value)
    good.add_argument("--groups", default="32,64")
    given = parser.parse_args()
    if given.part == "speed":
        speed(given.layers, given.width, given.group, given.rounds, given.threads)
    else:
        groups = [int(group) for group in given.groups.split(",")]
        compare(given.folder, given.rows, given.calibration, given.bits, groups)


if __name__ == "__main__":
    main()
