"""8-bit recipes of APQ-ViT and OS+ as files: how often they answer as their simulation, and how fast they are.

    python benchmarks/transformers_deployed.py [--shared FOLDER] [--bert FOLDER] [--limit 1000] [--threads 1]
        [--targets onnxruntime openvino] [--csv FILE]

vit_cifar10 with `apq-vit` on pictures of CIFAR-10-JPEG, calibrated on 128 training pictures, and a folder with a BERT
classifier of sentences with `os-plus` on SST-2's development set, calibrated on 128 training sentences; what
`seatrial quantize` makes of them. Both are judged by the files that it writes: the float and the 8-bit network for a
runtime, and the simulation.

`differ` is the 95th percentile of the absolute difference of a logit between file and simulation. A sample whose
simulated margin (best logit less second best) is larger is `clear`; those should agree on at least 99 %. Latency is one
sample a call, 8-bit file and float file of the same runtime in alternating rounds, each in a process of its own; the
ratio is the median over rounds with its 95 % interval, sentences as long as the longest. Ends with 1 where the clear
samples of a row agree on less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csv_table import print_table, write_csv

from seatrial.catalogue import make
from seatrial.core.graph import Graph
from seatrial.core.language import token_inputs
from seatrial.core.predictor import Inputs
from seatrial.core.target import Target
from seatrial.deploy.alternated import alternated_ms
from seatrial.deploy.machine import this_machine
from seatrial.deploy.stopwatch import Subject as Timed
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import load_batches, open_subject
from seatrial.jobs.text_settings import TextSettings
from seatrial.jobs.text_subject import open_text_subject
from seatrial.jobs.variants import SIMULATION, Variant, build
from seatrial.metrics.intervals import median_interval
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CALIBRATION, BATCH = 128, 32
LEAST = 0.99


@dataclass(frozen=True, eq=False)
class Task:
    """A network with what it is calibrated and judged on; `length` is that of the longest sentence."""

    name: str
    method: str
    graph: Graph
    calibration: Sequence[Inputs]
    judged: Sequence[Inputs]
    labels: np.ndarray
    length: int | None = None


def pictures(options: argparse.Namespace) -> Task:
    """Return vit_cifar10 with pictures."""
    shared = options.shared
    settings = Settings(
        noise="none",
        calibration=str(shared / "cifar10_jpeg_train.tar.xz"),
        calibration_samples=CALIBRATION,
        limit=options.limit,
    )
    subject = open_subject(shared / "models" / "vit_cifar10.pt2", shared / "cifar10_jpeg_test.tar.xz", settings)
    assert isinstance(subject.model, Model)
    judged, labels = load_batches(subject.evaluation, subject.pipeline), np.asarray(subject.evaluation.labels)
    return Task("vit_cifar10", "apq-vit", subject.model.graph, subject.calibration_batches(), judged, labels)


def sentences(options: argparse.Namespace) -> Task:
    """Return the classifier of sentences with SST-2."""
    texts = options.shared / "text" / "sst2"
    settings = Settings(
        calibration=str(texts / "train.tsv"), calibration_samples=CALIBRATION, limit=options.limit, batch=BATCH
    )
    subject = open_text_subject(f"hf:{options.bert}", texts / "dev.tsv", settings, TextSettings())
    samples = list(subject.evaluation)
    starts = range(0, len(samples), BATCH)
    judged = [token_inputs(samples[start : start + BATCH], subject.tokenizer.pad) for start in starts]
    labels = np.asarray(subject.evaluation.labels)
    graph, calibration = subject.model.graph, subject.calibration_batches()
    return Task("BERT, SST-2", "os-plus", graph, calibration, judged, labels, subject.longest)


def logits(variant: Variant, judged: Sequence[Inputs], threads: int) -> np.ndarray:
    """Return what the file of a variant answers, [samples, classes]."""
    target: Target = make("target", variant.target)
    predictor = target.open(variant.artefact, threads=threads)
    try:
        with torch.no_grad():
            return np.concatenate([predictor(batch).double().numpy() for batch in judged])
    finally:
        predictor.close()


def compared(told: np.ndarray, simulated: np.ndarray) -> dict[str, Any]:
    """Return how logits of a file and of its simulation agree."""
    agreed = told.argmax(1) == simulated.argmax(1)
    best = np.sort(simulated, axis=1)
    differ = float(np.percentile(np.abs(told - simulated), 95))
    clear = best[:, -1] - best[:, -2] > differ
    return {
        "samples": len(agreed),
        "agreed": float(agreed.mean()),
        "differ": differ,
        "median_margin": float(np.median(best[:, -1] - best[:, -2])),
        "clear": int(clear.sum()),
        "clear_agreed": float(agreed[clear].mean()) if clear.any() else float("nan"),
    }


def measure(task: Task, target: Target, threads: int, folder: Path) -> dict[str, Any]:
    """Return the row of one network on one runtime."""
    settings = Settings(target=target.name, method=task.method, threads=threads)
    built = build(fold_batch_norm(task.graph), target, task.calibration, folder, settings)
    variants = {variant.label: variant for variant in built.variants}
    rounded, plain = variants[f"{settings.bits}@{target.name}"], variants[f"float@{target.name}"]
    simulated = logits(variants[f"{settings.bits}@{SIMULATION}"], task.judged, threads)
    told, whole = (logits(variant, task.judged, threads) for variant in (rounded, plain))
    given = {} if task.length is None else {"length": str(task.length)}
    artefacts = [replace(one.artefact, settings={**one.artefact.settings, **given}) for one in (rounded, plain)]
    rounds_ms = alternated_ms([Timed(target.name, artefact) for artefact in artefacts], threads=threads, batch=1)
    ratios = rounds_ms[:, 0] / rounds_ms[:, 1]
    interval = median_interval(ratios)
    row: dict[str, Any] = {"network": task.name, "method": task.method, "runtime": target.name}
    row |= compared(told, simulated)
    row |= {"float": float((whole.argmax(1) == task.labels).mean())}
    row |= {"deployed": float((told.argmax(1) == task.labels).mean())}
    row |= {"float_ms": float(np.median(rounds_ms[:, 1])), "deployed_ms": float(np.median(rounds_ms[:, 0]))}
    return row | {"ratio": float(np.median(ratios)), "ratio_low": interval.low, "ratio_high": interval.high}


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row as the page has it."""
    return [
        *(str(row[key]) for key in ("network", "method", "runtime", "samples")),
        f"{row['agreed']:.2%}",
        f"{row['clear_agreed']:.2%} of {row['clear']}",
        f"{row['differ']:.3f} ({row['median_margin']:.2f})",
        f"{row['float']:.2%} / {row['deployed']:.2%}",
        f"{row['float_ms']:.2f} / {row['deployed_ms']:.2f}",
        f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
    ]


def main() -> int:
    """Print one row a network and runtime; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the development data")
    parser.add_argument("--bert", type=Path, help="a Hugging Face folder; without it, pictures alone")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--targets", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = this_machine(options.threads)
    print(f"{machine.cpu}, {machine.cores} cores, {options.threads} used, {', '.join(machine.instruction_sets)}")
    makers: list[Callable[[argparse.Namespace], Task]] = [pictures, *([sentences] if options.bert else [])]
    rows: list[dict[str, Any]] = []
    for maker in makers:
        task = maker(options)
        for name in options.targets:
            with tempfile.TemporaryDirectory() as scratch:
                rows.append(measure(task, make("target", name), options.threads, Path(scratch)))
            print(rows[-1], file=sys.stderr, flush=True)
    heads = ("network", "method", "runtime", "samples", "agree", "clear ones agree", "differ (median margin)")
    print_table((*heads, "accuracy, float / 8 bits", "ms, float / 8 bits", "ratio (95 %)"), map(cells, rows))
    if options.csv:
        write_csv(options.csv, rows)
    return int(any(not row["clear_agreed"] >= LEAST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
