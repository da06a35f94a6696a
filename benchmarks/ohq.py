"""OHQ against uniform precisions, NNCF and quantize_static: alternated latency of the network that the search gives.

    python benchmarks/ohq.py --rows ohq.jsonl [--models ResNet-18 ...] [--targets openvino onnxruntime]
        [--batches 1 8] [--threads 2] [--time-budget 120] [--peers FOLDER] [--table] [--csv FILE] [--explain MODEL ...]

Networks with random weights (seeded; the architectures of benchmarks/architectures.py, ResNet-50 and BERT-mini) and,
where the development data are beside the repository, its trained networks. For each runtime and batch size: uniform
precisions, then the search within the time budget (export included), then 40 rounds in which every network gets a turn
in a process of its own: float, bf16, uniform W8A8, the choice, NNCF's INT8 (its transformer preset for transformers,
from PyTorch and from our float ONNX file) or quantize_static's. A ratio is the median over rounds of one time over the
other's, its interval that of a median between order statistics, 95 %. Where no mixture was surely faster, the best
uniform network is the choice, and its ratio is 1 by definition.

Signal to quantization noise of the outputs (random weights) is told on four fresh inputs, agreement with float and
accuracy (trained weights) on the evaluation pictures, all from the deployed files. A row is one line of JSON; rows that
are there are not measured again. `--table` prints the table of a file, `--explain` where the time of a choice goes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import architectures
import nncf_latency
import numpy as np
import torch
from csv_table import write_csv
from torch import Tensor

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.target import Artefact
from seatrial.data.load import load_input
from seatrial.deploy.alternated import alternated_ms
from seatrial.deploy.machine import this_machine
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.operators import profile
from seatrial.deploy.stopwatch import Subject
from seatrial.jobs.chip_search import ChipSearch
from seatrial.jobs.search_settings import SearchSettings
from seatrial.jobs.subject import open_subject
from seatrial.metrics.intervals import median_interval, paired_difference
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.groups import group_operators
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place_operators

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RANDOM = {**architectures.VISION, "ResNet-50": "resnet50"}
TRANSFORMERS = ("DeiT-Tiny", "Swin-Tiny", "BERT-mini", "vit_cifar10")
IMAGENET, CIFAR = (
    ("imagenet_val_800", "imagenet_original_120"),
    ("cifar10_jpeg_test.tar.xz", "cifar10_jpeg_train.tar.xz"),
)
TRAINED = {
    "squeezenet1_1_imagenet": IMAGENET,
    "etinynet_imagenet": IMAGENET,
    "mobilenet_v1_025_imagenet": IMAGENET,
    "mobilenet_v2_imagenet": IMAGENET,
    "resnet20_cifar10": CIFAR,
    "resnet56_cifar10": CIFAR,
    "vit_cifar10": CIFAR,
}
TOKENS, LENGTH = 30522, 128


@dataclass(frozen=True, eq=False)
class Task:
    """A network with what it is calibrated and judged on; `labels` are None for random weights."""

    graph: Graph
    calibration: list[Any]
    judged: list[Any]
    labels: np.ndarray | None


def bert_mini() -> tuple[Graph, Callable[[int], dict[str, Tensor]]]:
    """Return BERT-mini (4 layers of 256, 4 heads) for classification, and what draws a batch of four sentences."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    model = BertForSequenceClassification(config).eval()

    def batch(seed: int) -> dict[str, Tensor]:
        chance = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, TOKENS, (4, LENGTH), generator=chance)
        return {"input_ids": tokens, "attention_mask": torch.ones(4, LENGTH, dtype=torch.int64)}

    return capture(model, {name: tensor[:2] for name, tensor in batch(0).items()}), batch


def task_of(name: str, shared: Path, limit: int | None) -> Task:
    """Return a network by its name in this table."""
    if name == "BERT-mini":
        graph, batch = bert_mini()
        return Task(fold_batch_norm(graph), [batch(1 + i) for i in range(4)], [batch(9)], None)
    if name in RANDOM:
        architectures.VISION.setdefault(name, RANDOM[name])
        torch.manual_seed(0)
        model, example = architectures.vision(RANDOM[name]), architectures.pictures(name, 4, seed=0)
        graph = capture(model, example[:2], normalization=architectures.IMAGENET)
        calibration = [architectures.pictures(name, 4, seed=1 + i) for i in range(4)]
        return Task(fold_batch_norm(graph), calibration, [architectures.pictures(name, 4, seed=9)], None)
    from seatrial.jobs.settings import Settings

    data, calibration = TRAINED[name]
    settings = Settings(noise="none", calibration=str(shared / calibration), calibration_samples=120, limit=limit)
    subject = open_subject(shared / "models" / f"{name}.pt2", shared / data, settings)
    inputs = [load_input(subject.pipeline, sample) for sample in subject.evaluation]
    batches = [torch.stack(inputs[start : start + 32]) for start in range(0, len(inputs), 32)]
    labels = np.asarray(subject.evaluation.labels)
    assert isinstance(subject.model, Model)
    return Task(fold_batch_norm(subject.model.graph), subject.calibration_batches(), batches, labels)


def nncf_models(name: str, task: Task, plain: Artefact, folder: Path, batch: int) -> dict[str, Artefact]:
    """Return NNCF's INT8 models with its defaults, with any batch size.

    Some that were converted from PyTorch keep the batch of their example and are left out at another: the ONNX route
    stays.
    """
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino as ov

    feeds = single_feeds(task)
    sources: dict[str, Any] = {"NNCF (ONNX)": str(plain.path)}
    if len(task.graph.inputs) == 1:
        sources["NNCF (PyTorch)"] = task.graph.module
    found = {}
    for label, source in sources.items():
        example = None if isinstance(source, str) else torch.from_numpy(next(iter(feeds[0].values())))
        model = ov.convert_model(source, example_input=example)
        shapes = [list(array.shape) for array in feeds[0].values()]
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        arrays = [next(iter(feed.values())) if len(feed) == 1 else feed for feed in feeds]
        kind = nncf.ModelType.TRANSFORMER if name in TRANSFORMERS else None
        quantized = nncf.quantize(model, nncf.Dataset(arrays), subset_size=len(arrays), model_type=kind)
        try:
            for size in (batch, -1):
                ports = zip(quantized.inputs, shapes, strict=True)
                quantized.reshape({port: [size, *shape[1:]] for port, shape in ports})
        except RuntimeError as error:
            print(f"{name}: no {label} at batch {batch}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        path = folder / f"{label}.xml"
        ov.save_model(quantized, str(path), compress_to_fp16=False)
        found[label] = Artefact(path, "ir", "w8a8", {})
    return found


def static_model(task: Task, plain: Artefact, folder: Path) -> Artefact:
    """Return what quantize_static makes of our float file: QDQ, u8 activations, s8 weights by channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(single_feeds(task))

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._left, None)

    prepared, path = folder / "prepared.onnx", folder / "static.onnx"
    quant_pre_process(str(plain.path), str(prepared), skip_symbolic_shape=True)
    unsigned, signed = QuantType.QUInt8, QuantType.QInt8
    quantize_static(str(prepared), str(path), Reader(), per_channel=True, activation_type=unsigned, weight_type=signed)
    return Artefact(path, "onnx", "w8a8", {})


def single_feeds(task: Task, count: int = 16) -> list[dict[str, np.ndarray]]:
    """Return the first calibration samples one by one, by input name."""
    feeds: list[dict[str, np.ndarray]] = []
    for batch in task.calibration:
        named = batch if isinstance(batch, dict) else {task.graph.inputs[0].name: batch}
        size = len(next(iter(named.values())))
        feeds += [{key: value[i : i + 1].numpy() for key, value in named.items()} for i in range(size)]
    return feeds[:count]


def answers(target: OpenVino | OnnxRuntime, artefact: Artefact, task: Task) -> Tensor:
    """Return what a deployed file answers to everything that a network is judged on."""
    predictor = target.open(artefact, threads=2)
    told = torch.cat([predictor(batch) for batch in task.judged])
    predictor.close()
    return told


@torch.no_grad()
def float_answers(task: Task) -> Tensor:
    """Return what the float graph answers."""
    graph = task.graph
    rows = [
        (batch,) if isinstance(batch, Tensor) else tuple(batch[spec.name] for spec in graph.inputs)
        for batch in task.judged
    ]
    return torch.cat([graph.module(*tensors) for tensors in rows])


def fidelity(plain: Tensor, told: Tensor, labels: np.ndarray | None) -> dict[str, float | None]:
    """Return SQNR in dB, agreement with float and accuracy."""
    noise, signal = (told - plain).square().sum(), plain.square().sum()
    right = None if labels is None else float((told.argmax(1).numpy() == labels).mean())
    agreed = None if labels is None else float((told.argmax(1) == plain.argmax(1)).double().mean())
    return {"sqnr_db": float(10 * torch.log10(signal / noise)), "agreement": agreed, "value": right}


def measure(
    name: str, task: Task, target: OpenVino | OnnxRuntime, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of one network on one runtime at one batch size."""
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        search = ChipSearch(target, Nearest(), SearchSettings(options.time_budget, batch), options.threads)
        uniform = search.uniform(task.graph, task.calibration, folder)
        searched = search.run(task.graph, task.calibration, folder, uniform, start_s)
        compared = {one.name: one.artefact for one in uniform.candidates}
        if searched.finalists:
            choice = search.deliver(task.graph, task.calibration, 0, searched, folder)
            compared["ohq"] = choice.artefact
        searching_s = time.monotonic() - start_s
        if options.peers:
            plain = compared["float32"]
            peers = nncf_models(name, task, plain, folder, batch) if target.name == "openvino" else {}
            compared |= peers or {"quantize_static": static_model(task, plain, folder)}
        subjects = [Subject(target.name, artefact) for artefact in compared.values()]
        for artefact in peers_in_settings(target, compared):
            subjects.append(Subject(target.name, artefact[1]))
            compared[artefact[0]] = artefact[1]
        rounds_ms = alternated_ms(subjects, threads=options.threads, batch=batch)
        plain_answers = float_answers(task)
        own = [label for label in compared if label == "ohq" or label.startswith(("float", "bf16", "w8a8"))]
        judged = {label: fidelity(plain_answers, answers(target, compared[label], task), task.labels) for label in own}
        difference = None
        if task.labels is not None and "ohq" in compared:
            told = {
                label: answers(target, compared[label], task).argmax(1).numpy() == task.labels
                for label in ("ohq", "w8a8")
            }
            paired = paired_difference(told["w8a8"], told["ohq"], rng=np.random.default_rng(0))
            difference = {"value": paired.difference, "low": paired.low, "high": paired.high, "n": paired.n}
    return row_of(name, target, batch, options, compared, rounds_ms, judged, difference, searched, searching_s)


def peers_in_settings(target: OpenVino | OnnxRuntime, compared: dict[str, Artefact]) -> list[tuple[str, Artefact]]:
    """Return NNCF's models with the bf16 hint too, where the chip has it."""
    if "bf16" not in target.precisions:
        return []
    found = [label for label in compared if label.startswith("NNCF")]
    return [(f"{label}+bf16", Artefact(compared[label].path, "ir", "w8a8", {"hint": "bf16"})) for label in found]


def row_of(
    name: str,
    target: OpenVino | OnnxRuntime,
    batch: int,
    options: argparse.Namespace,
    compared: dict[str, Artefact],
    rounds_ms: np.ndarray,
    judged: dict[str, dict[str, float | None]],
    difference: dict[str, Any] | None,
    searched: Any,
    searching_s: float,
) -> dict[str, Any]:
    labels, medians = list(compared), np.median(rounds_ms, axis=0)
    by = {label: rounds_ms[:, i] for i, label in enumerate(labels)}
    ms = {label: float(medians[i]) for i, label in enumerate(labels)}
    uniform = [label for label in labels if label.startswith(("float", "bf16", "w8a8"))]
    best = min(uniform, key=ms.__getitem__)

    def ratio(one: str, other: str) -> dict[str, float]:
        ratios = by[one] / by[other]
        interval = median_interval(ratios)
        return {"value": float(np.median(ratios)), "low": interval.low, "high": interval.high}

    mixed = "ohq" in by and ratio("ohq", best)["high"] < 1.0
    chosen = "ohq" if mixed else best
    peers = [label for label in labels if label.startswith(("NNCF", "quantize_static"))]
    peer = min(peers, key=ms.__getitem__) if peers else None
    told = {setting: one.additivity for setting, one in searched.explorations.items() if one.additivity is not None}
    first = next(iter(searched.explorations))
    return {
        "model": name,
        "target": target.name,
        "batch": batch,
        "threads": options.threads,
        "ms": ms,
        "best_uniform": best,
        "chosen": chosen,
        "setting": searched.finalists[0][0] if mixed else None,
        "ratio": ratio(chosen, best) if mixed else {"value": 1.0, "low": 1.0, "high": 1.0},
        "mixture_ratio": ratio("ohq", best) if "ohq" in by else None,
        "ratio_int8": ratio(chosen, min((label for label in uniform if label.startswith("w8a8")), key=ms.__getitem__)),
        "peer": peer,
        "ratio_peer": ratio(chosen, peer) if peer else None,
        "judged": judged,
        "difference": difference,
        "additivity": {setting: [one.spearman, one.mape] for setting, one in told.items()},
        "repeat_spread": searched.explorations[first].repeat_spread,
        "groups": len(searched.explorations[first].grouping.groups),
        "integer_groups": sum(p != "float" for p in searched.finalists[0][1].choice.values())
        if searched.finalists
        else None,
        "choice": dict(searched.finalists[0][1].choice) if mixed else None,
        "measured": len(searched.steps),
        "seconds": searching_s,
        "notes": list(searched.notes),
    }


def explain(row: dict[str, Any], task: Task, options: argparse.Namespace) -> str:
    """Return where the time of float, uniform W8A8 and a row's choice goes, by kind of the runtime's operators."""
    hint = "bf16" if row["setting"] == "bf16" else "f32"
    target = OpenVino(hint=hint) if row["target"] == "openvino" else OnnxRuntime()
    rules, quantizer = target.placement, Nearest()
    grouping = group_operators(task.graph, rules)
    told: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for label in ("float32", "w8a8", "choice"):
            wanted = {
                operator: Bits(8, 8)
                for group in grouping.groups
                for operator in group.operators
                if label == "w8a8" or (label == "choice" and row["choice"][group.name] != "float")
            }
            sites = place_operators(task.graph, rules, wanted)
            recipe = quantizer.plan(task.graph, task.calibration, sites, rng=generator(0, "ohq"))
            graph = realise(task.graph, recipe) if wanted else task.graph
            artefact = target.compile(graph, Path(scratch) / label, bits="mixed")
            kinds: dict[str, float] = {}
            for entry in profile(target, artefact, threads=options.threads, runs=30):
                key = f"{entry.kind} ({entry.precision})"
                kinds[key] = kinds.get(key, 0.0) + entry.microseconds
            told[label] = kinds
    names = sorted({name for kinds in told.values() for name in kinds}, key=lambda name: -told["w8a8"].get(name, 0.0))
    shown = [name for name in names if max(kinds.get(name, 0.0) for kinds in told.values()) >= 10]
    lines = [f"{row['model']} on {row['target']}, microseconds of one call", ""]
    lines += ["| operator (precision) | float32 | w8a8 | choice |", "|---|---|---|---|"]
    for name in shown:
        lines.append(f"| {name} | " + " | ".join(f"{kinds.get(name, 0.0):.0f}" for kinds in told.values()) + " |")
    return "\n".join([*lines, f"| all | {' | '.join(f'{sum(kinds.values()):.0f}' for kinds in told.values())} |", ""])


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as columns of numbers and texts."""
    plain = (
        "model",
        "target",
        "batch",
        "threads",
        "best_uniform",
        "chosen",
        "setting",
        "peer",
        "repeat_spread",
        "groups",
    )
    found = {key: row[key] for key in (*plain, "integer_groups", "measured", "seconds")}
    for key in ("ratio", "ratio_int8", "ratio_peer", "mixture_ratio"):
        if row[key]:
            found |= {key: row[key]["value"], f"{key}_low": row[key]["low"], f"{key}_high": row[key]["high"]}
    for label, ms in row["ms"].items():
        found[f"ms {label}"] = ms
    for label, judged in row["judged"].items():
        found |= {f"{key} {label}": value for key, value in judged.items()}
    if row["difference"]:
        found |= {f"difference_{key}": value for key, value in row["difference"].items()}
    for setting, (spearman, mape) in row["additivity"].items():
        found |= {f"spearman {setting}": spearman, f"mape {setting}": mape}
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown, with geometric means."""
    lines = [
        "| model | runtime | batch | best uniform | ms | chosen ms | ratio (95 %) | to own int8 | peer | to peer "
        "| fidelity |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio, peer = row["ratio"], row["ratio_peer"]
        told, base = row["judged"][row["chosen"]], row["judged"][row["best_uniform"]]
        if told["agreement"] is None:
            shown = f"{told['sqnr_db']:.1f} dB"
        else:
            shown = f"{told['agreement']:.2%} agree (uniform int8 {row['judged']['w8a8']['agreement']:.2%})"
        best = f"{row['ms'][row['best_uniform']]:.2f}"
        sure = (
            f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
            if row["chosen"] == "ohq"
            else "1 (kept)"
        )
        lines.append(
            f"| {row['model']} | {row['target']} | {row['batch']} | {row['best_uniform']} | {best} | "
            f"{row['ms'][row['chosen']]:.2f} | {sure} | {row['ratio_int8']['value']:.3f} | {row['peer'] or '-'} | "
            f"{peer['value']:.3f} | {shown} |"
            if peer
            else f"| {row['model']} | {row['target']} | {row['batch']} | {row['best_uniform']} | {best} | "
            f"{row['ms'][row['chosen']]:.2f} | {sure} | {row['ratio_int8']['value']:.3f} | - | - | {shown} |"
        )
        del base
    for target in dict.fromkeys(row["target"] for row in rows):
        for key, what in (("ratio", "best uniform"), ("ratio_int8", "own int8"), ("ratio_peer", "peer")):
            values = [row[key]["value"] for row in rows if row["target"] == target and row[key]]
            if values:
                lines.append(f"\ngeometric mean on {target} against {what}: {np.exp(np.mean(np.log(values))):.3f}")
    values = [row["ratio"]["value"] for row in rows]
    lines.append(f"\ngeometric mean against the best uniform: {np.exp(np.mean(np.log(values))):.3f}")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then print the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[*RANDOM, "BERT-mini", *TRAINED])
    parser.add_argument("--targets", nargs="*", default=["openvino", "onnxruntime"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-budget", type=float, default=120.0)
    parser.add_argument("--limit", type=int, default=800, help="evaluation pictures of the trained networks")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--peers", type=Path, help="folder that NNCF is installed into; without: no peers")
    parser.add_argument("--table", action="store_true", help="only print the table of --rows")
    parser.add_argument("--csv", type=Path, help="write --rows as CSV, too")
    parser.add_argument("--explain", nargs="*", default=[], help="networks: where their time goes, by kind of operator")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    for name in options.explain:
        for row in rows:
            if row["model"] == name and row["choice"] and row["target"] in options.targets:
                print(explain(row, task_of(name, options.shared, options.limit), options))
    if not options.table and not options.explain:
        if options.peers:
            nncf_latency.install_peers(options.peers)
        logging.disable(logging.WARNING)
        machine = this_machine(options.threads)
        print(f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets)}", file=sys.stderr)
        done = {(row["model"], row["target"], row["batch"]) for row in rows}
        for name in options.models:
            asked = [(t, b) for t in options.targets for b in options.batches if (name, t, b) not in done]
            if not asked or (name in TRAINED and not (options.shared / "models" / f"{name}.pt2").exists()):
                continue
            task = task_of(name, options.shared, options.limit)
            for target, batch in asked:
                runtime = OpenVino() if target == "openvino" else OnnxRuntime()
                row = measure(name, task, runtime, batch, options)
                rows.append(row)
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    name,
                    target,
                    batch,
                    row["best_uniform"],
                    row["chosen"],
                    row["ratio"],
                    row["seconds"],
                    file=sys.stderr,
                )
    print(table(rows))
    if options.csv:
        write_csv(options.csv, [flat_row(row) for row in rows])


if __name__ == "__main__":
    main()
