"""What planning costs: seconds and memory of OS+ and APQ-ViT against NNCF's quantization with its SmoothQuant.

    python benchmarks/planning_cost.py [--peers FOLDER] [--launches 3] [--networks DeiT-Tiny BERT-base]
        [--methods apq-vit os-plus nncf] [--held] [--csv FILE]

DeiT-Tiny calibrated on 32 pictures of 224 pixels, BERT-base (12 layers) on 128 sequences of 128 tokens, in batches as
`seatrial quantize` takes them, both with random weights, W8A8 at the sites of `OpenVino().placement`. OS+ is what that
command makes of it: mean squared error ranges, and corrected biases for pictures alone; APQ-ViT has no corrected
biases. The peer is `nncf.quantize` for transformers with its defaults (SmoothQuant, fast bias correction) on the same
float network as an OpenVINO model, one sample an item as its documentation has it.

Every plan runs in a process of its own, held to one core, all in turns and backwards the next time. Opening, capture
and conversion do not count, nor does code that is loaded when first used: a network of two layers is planned before.
Memory is the most resident memory of the process while it plans (the kernel's high-water mark, reset before), less what
was resident before; with `--held` that is told of one more launch, too, in which glibc gives freed blocks above 1 MiB
back at once, so that what the allocator keeps does not count. Its bound is twice the parameters and the activations of
one block: what the operators of the largest residual block give for 32 samples, views left out. Linux alone.
Ends with 1 where a bar is missed: OS+ three times the peer's processor time, APQ-ViT ten minutes, memory the bound.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nncf_latency
import numpy as np
import torch
from csv_table import print_table, write_csv
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.sites import operators
from seatrial.deploy.machine import this_machine
from seatrial.deploy.openvino import OpenVino
from seatrial.jobs.quantized import quantizer_of
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import CALIBRATION_BATCH
from seatrial.jobs.text_subject import CALIBRATION_BATCH as TEXT_BATCH
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.numerics.observe import tensors_of, watch
from seatrial.numerics.ranges import MeanSquaredError
from seatrial.quant.apq_vit import APQViT
from seatrial.quant.blocks import blocks_of
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

PEER = "nncf"
SLOWEST_RATIO, LONGEST_S = 3.0, 600.0
MIB = 2**20
CASES = {"DeiT-Tiny": ("apq-vit", "os-plus", PEER), "BERT-base": ("os-plus", PEER)}
Planned = Callable[[], object]


def deit() -> tuple[Graph, list[Inputs]]:
    """Return DeiT-Tiny and its calibration: 4 batches of 8 pictures."""
    return nncf_latency.timm_graph("deit_tiny_patch16_224"), [*nncf_latency.pictures(32).split(CALIBRATION_BATCH)]


def bert() -> tuple[Graph, list[Inputs]]:
    """Return BERT-base for classification and its calibration: 8 batches of 16 sequences of 128 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig()
    model = BertForSequenceClassification(config).eval()
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, config.vocab_size, (128, 128), generator=chance)
    mask = torch.ones_like(tokens)
    parts = zip(tokens.split(TEXT_BATCH), mask.split(TEXT_BATCH))
    batches = [{"input_ids": ids, "attention_mask": ones} for ids, ones in parts]
    return capture(model, {name: tensor[:2] for name, tensor in batches[0].items()}), [*batches]


def little() -> tuple[Graph, list[Inputs]]:
    """Return a network of two layers and its calibration."""
    layers = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()
    return capture(layers, torch.rand(2, 8)), [torch.rand(4, 8)]


NETWORKS: dict[str, Callable[[], tuple[Graph, list[Inputs]]]] = {"DeiT-Tiny": deit, "BERT-base": bert}


@dataclass(frozen=True)
class Run:
    """One plan: wall and processor seconds, and bytes that it took above what was there."""

    wall_s: float
    processor_s: float
    memory: int

    @staticmethod
    def of(plan: Planned) -> Run:
        """Run a plan and tell what it took."""
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
        before, start_s, processor_s = resident("VmRSS"), time.perf_counter(), time.process_time()
        plan()
        took_s, worked_s = time.perf_counter() - start_s, time.process_time() - processor_s
        return Run(took_s, worked_s, resident("VmHWM") - before)


def resident(field: str) -> int:
    """Return a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def quantizer(method: str, graph: Graph) -> Quantizer:
    """Return a quantizer by its name in the table."""
    if method == "apq-vit":
        return APQViT(Nearest(MeanSquaredError(), bias_correction=False, equalization="none"))
    return quantizer_of(Settings(method=method), pictures=graph.inputs[0].dtype.startswith("float"))


def ours(graph: Graph, calibration: list[Inputs], method: str) -> Planned:
    """Return what plans with one of our quantizers."""
    sites = place(graph, OpenVino().placement, Bits(8, 8))
    return partial(quantizer(method, graph).plan, graph, calibration, sites, rng=generator(0, "planning-cost"))


def theirs(graph: Graph, calibration: list[Inputs], path: Path) -> Planned:
    """Return what quantizes our float ONNX file with NNCF."""
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino as ov

    model = ov.convert_model(str(OpenVino().compile(graph, path, bits="float32").path))
    named = [{graph.inputs[0].name: batch} if isinstance(batch, Tensor) else batch for batch in calibration]
    shapes = {port: [1, *named[0][port.get_any_name()].shape[1:]] for port in model.inputs}
    model.reshape(shapes)
    items = [
        {name: tensor[index : index + 1].numpy() for name, tensor in batch.items()}
        for batch in named
        for index in range(len(next(iter(batch.values()))))
    ]
    kind = nncf.ModelType.TRANSFORMER
    return lambda: nncf.quantize(model, nncf.Dataset(items), subset_size=len(items), model_type=kind)


@torch.no_grad()
def bound(graph: Graph, batch: Inputs) -> dict[str, int]:
    """Return the bytes of all parameters, and of what the operators of the largest block give for 32 samples."""
    named, samples = operators(graph), len(tensors_of(graph, batch)[0])
    names = {node: name for name, node in named.items() if node.op == "call_function"}
    given: dict[str, int] = {}

    def see(name: str, value: object) -> None:
        given[name] = value.nbytes if isinstance(value, Tensor) and not value._is_view() else 0

    watch(graph, [batch], {node: partial(see, name) for node, name in names.items()})
    blocks = blocks_of(graph, dict.fromkeys(given))
    held = {id(tensor): tensor for tensor in (*graph.module.parameters(), *graph.module.buffers())}
    return {
        "model_bytes": sum(tensor.nbytes for tensor in held.values()),
        "block_bytes": max(sum(given[name] for name in block.operators) for block in blocks) * 32 // samples,
    }


def child(network: str, method: str) -> dict[str, Any]:
    """Plan once in this process, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    captured, calibration = NETWORKS[network]()
    graph = fold_batch_norm(captured)
    del captured
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        planned(*little(), method, folder / "little")()
        plan = planned(graph, calibration, method, folder / "asked")
        found = {} if method == PEER else bound(graph, calibration[0])
        return vars(Run.of(plan)) | found


def planned(graph: Graph, calibration: list[Inputs], method: str, path: Path) -> Planned:
    """Return what plans with a method of the table."""
    return theirs(graph, calibration, path) if method == PEER else ours(graph, calibration, method)


def launched(network: str, method: str, peers: Path, *, held: bool = False) -> dict[str, Any]:
    """Plan once in a process of its own; with `held`, freed memory is given back at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"MALLOC_MMAP_THRESHOLD_": str(MIB)} if held else {})
    command = [sys.executable, __file__, "--child", network, method, "--peers", str(peers)]
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def row_of(network: str, method: str, runs: list[dict[str, Any]], peer: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one line of the table; ratios are of runs of the same launch."""
    wall = [run["wall_s"] for run in runs]
    row: dict[str, Any] = {"network": network, "method": method, "launches": len(runs)}
    row |= {"wall_s": float(np.median(wall)), "wall_low": min(wall), "wall_high": max(wall)}
    row |= {"processor_s": float(np.median([run["processor_s"] for run in runs]))}
    row |= {"memory_mib": max(run["memory"] for run in runs) / MIB}
    if method == PEER:
        return row
    first = runs[0]
    limit = 2 * first["model_bytes"] + first["block_bytes"]
    row |= {"model_mib": first["model_bytes"] / MIB, "block_mib": first["block_bytes"] / MIB, "bound_mib": limit / MIB}
    row |= {"memory_within": row["memory_mib"] <= row["bound_mib"]}
    for key in ("wall_s", "processor_s") if peer else ():
        ratios = [run[key] / other[key] for run, other in zip(runs, peer, strict=True)]
        name = key.removesuffix("_s")
        row |= {f"{name}_ratio": float(np.median(ratios))}
        row |= {f"{name}_ratio_low": min(ratios), f"{name}_ratio_high": max(ratios)}
    slowest = row.get("processor_ratio", 0.0) <= SLOWEST_RATIO
    row |= {"time_within": row["wall_s"] < LONGEST_S if method == "apq-vit" else slowest}
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row as the page has it."""
    found = [row["network"], row["method"], f"{row['wall_s']:.1f} ({row['wall_low']:.1f} to {row['wall_high']:.1f})"]
    found.append(f"{row['processor_s']:.1f}")
    if "processor_ratio" in row:
        found += [f"{row[f'{key}_ratio']:.2f}" for key in ("wall", "processor")]
        found[-1] += f" ({row['processor_ratio_low']:.2f} to {row['processor_ratio_high']:.2f})"
    else:
        found += ["-", "-"]
    found.append(f"{row['memory_mib']:.0f}" + (f" ({row['held_mib']:.0f})" if "held_mib" in row else ""))
    if "bound_mib" not in row:
        return [*found, "-", "-"]
    found.append(f"{row['bound_mib']:.0f} (2 x {row['model_mib']:.0f} + {row['block_mib']:.0f})")
    missed = [name for name in ("time", "memory") if not row[f"{name}_within"]]
    return [*found, f"missed: {', '.join(missed)}" if missed else "holds"]


def main() -> int:
    """Print one row a network and method; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=["apq-vit", "os-plus", PEER])
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--held", action="store_true", help="one more launch each for what is held")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("NETWORK", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        peers = options.peers or Path(scratch) / "peers"
        if PEER in (options.child or options.methods):
            nncf_latency.install_peers(peers)
        if options.child:
            print(json.dumps(child(*options.child)))
            return 0
        machine = this_machine(1)
        print(f"{machine.cpu}, {machine.cores} cores, 1 used, {', '.join(machine.instruction_sets)}", file=sys.stderr)
        rows: list[dict[str, Any]] = []
        for network in options.networks:
            methods = [method for method in CASES[network] if method in options.methods]
            runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
            for launch in range(options.launches):
                for method in methods if launch % 2 == 0 else reversed(methods):
                    runs[method].append(launched(network, method, peers))
                    print(network, method, runs[method][-1], file=sys.stderr, flush=True)
            for method, told in runs.items():
                rows.append(row_of(network, method, told, runs.get(PEER, [])))
                if options.held:
                    rows[-1]["held_mib"] = launched(network, method, peers, held=True)["memory"] / MIB
    heads = ("network", "method", "seconds (range)", "processor seconds", "seconds / NNCF", "processor / NNCF")
    print_table((*heads, "memory (held), MiB", "bound, MiB", "bar"), [cells(row) for row in rows])
    if options.csv:
        write_csv(options.csv, rows)
    return int(not all(row.get("time_within", True) and row.get("memory_within", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
