"""APQ-ViT and its peers on a trained vision transformer: accuracy at 8 to 3 bits, paired with float and with APQ-ViT.

    python benchmarks/apq_vit.py [--shared FOLDER] [--limit 2000] [--seeds 3] --work DIR --csv rows.csv

The network is vit_cifar10 on CIFAR-10-JPEG. A seed is a draw of 32 training pictures for calibration; accuracies are
means over seeds, intervals are over the test pictures. First and last operator keep 8 bits, biases are not corrected
unless the name says so. Answers are kept under --work, so that a run goes on where it was stopped. Needs the
development data.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from csv_table import write_csv
from paired_answers import Answers, against, figure, kept
from torch import Tensor

from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.data.load import load_input
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import open_subject
from seatrial.models.opened import Model
from seatrial.numerics.ranges import MeanSquaredError, MinMax, Range
from seatrial.quant.apq_vit import APQViT
from seatrial.quant.block_error import BlockError
from seatrial.quant.granularity import Granularity
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.ptq4vit import PTQ4ViT
from seatrial.quant.repq_vit import RepQViT

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RULES = PlacementRules("torch", "by-range", operator_outputs=False, attention_products="all")
SAMPLES, DRAWS = 32, 3
OURS = "apq-vit"


def nearest(ranges: Range, *, corrected: bool = False) -> Nearest:
    """Rounds alone, with biases corrected or not."""
    return Nearest(ranges, bias_correction=corrected, equalization="none")


MSE = nearest(MeanSquaredError())
METHODS: Mapping[str, Quantizer] = {
    "min-max": nearest(MinMax()),
    "mse": MSE,
    "ptq4vit": PTQ4ViT(),
    "ptq4vit, no twins": PTQ4ViT(twin=False),
    "repq-vit": RepQViT(),
    OURS: APQViT(MSE),
    "apq-vit, no elimination": APQViT(MSE, BlockError("all")),
    "apq-vit, terms kept": APQViT(MSE, BlockError("terms")),
    "apq-vit, plain errors": APQViT(MSE, BlockError("all", weighted=False)),
    "apq-vit, no blocks": APQViT(MSE, BlockError("all"), blocks="operators"),
    "apq-vit, softmax preserved": APQViT(MSE, softmax="preserving"),
    "apq-vit, softmax by map error": APQViT(MSE, softmax="map-error"),
    "apq-vit, float inputs": APQViT(MSE, inputs="float"),
    "mse, biases corrected": nearest(MeanSquaredError(), corrected=True),
    "apq-vit, biases corrected": APQViT(nearest(MeanSquaredError(), corrected=True)),
}
PER_TENSOR = "*"
"""Behind bits: one scale for a whole weight instead of one for each channel."""
BITS = ("w8a8", "w6a6", "w4a4", "w3a3", "w4a4*", "w3a3*")


def answers(graph: Graph, batches: Sequence[Tensor], labels: np.ndarray) -> Answers:
    """Judge a graph on pictures."""
    with torch.no_grad():
        found = np.concatenate([graph.module(batch).argmax(1).numpy() for batch in batches])
    return Answers((found == labels).astype(float), np.zeros(0), np.zeros(0))


def rounded(graph: Graph, method: Quantizer, bits: str, batch: Tensor, seed: int) -> Graph:
    """Return the network, rounded."""
    wanted = place(graph, RULES, Bits.parse(bits.rstrip(PER_TENSOR)))
    if bits.endswith(PER_TENSOR):
        wanted = Granularity(weights="tensor").of(graph, wanted)
    return realise(graph, method.plan(graph, [batch], wanted, rng=generator(seed, "apq-vit")))


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, default=DRAWS, choices=range(1, DRAWS + 1))
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    settings = Settings(
        calibration=str(given.shared / "cifar10_jpeg_train.tar.xz"),
        calibration_samples=SAMPLES * DRAWS,
        limit=given.limit,
    )
    subject = open_subject(
        given.shared / "models" / "vit_cifar10.pt2", given.shared / "cifar10_jpeg_test.tar.xz", settings
    )
    assert isinstance(subject.model, Model)
    graph = subject.model.graph
    draws = torch.cat(subject.calibration_batches()).split(SAMPLES)
    pictures = torch.stack([load_input(subject.pipeline, sample) for sample in subject.evaluation])
    batches, labels = pictures.split(100), np.asarray(subject.evaluation.labels)
    plain = [kept(given.work / f"float-{len(labels)}.npz", lambda: answers(graph, batches, labels))] * given.seeds
    rows: list[dict[str, object]] = []
    for bits in given.bits.split(","):
        told = {
            method: [
                kept(
                    given.work / f"{bits}-{method}-{seed}-{len(labels)}.npz",
                    lambda m=method, b=bits, n=seed: answers(
                        rounded(graph, METHODS[m], b, draws[n], n), batches, labels
                    ),
                )
                for seed in range(given.seeds)
            ]
            for method in given.methods.split(";")
        }
        for method, seeds in told.items():
            loss, low, high = against(plain, seeds)
            row: dict[str, object] = {"bits": bits, "method": method, "seeds": len(seeds), "pictures": len(labels)}
            row |= {"float": figure(plain, True), "top1": figure(seeds, True)}
            row |= {"against_float": loss, "low": low, "high": high}
            if OURS in told and method != OURS:
                ours = against(seeds, told[OURS])
                row |= {"apq_vit_against_it": ours[0], "apq_vit_low": ours[1], "apq_vit_high": ours[2]}
            rows.append(row)
            print({key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
        if given.csv is not None:
            write_csv(given.csv, rows)


if __name__ == "__main__":
    main()
