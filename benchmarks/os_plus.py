"""OS+ and its peers on language models: accuracy or perplexity at 8, 6 and 4 bits, paired with float and with OS+.

    python benchmarks/os_plus.py bert=DIR1,DIR2,DIR3 --data dev.tsv --calibration train.tsv --work DIR --csv rows.csv

Each subject is NAME=FOLDERS, Hugging Face folders of one network trained with different seeds (see
examples/train_language_models.py). Answers are kept under --work, so that a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from csv_table import write_csv
from paired_answers import Answers, against, figure, kept

from seatrial.bench.texts import text_records
from seatrial.core.chance import generator
from seatrial.core.graph import Graph, GraphPredictor
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.jobs.settings import Settings
from seatrial.jobs.text_settings import TextSettings
from seatrial.jobs.text_subject import TextSubject, open_text_subject
from seatrial.metrics.joining import column
from seatrial.numerics.ranges import MeanSquaredError, MinMax, Percentile
from seatrial.quant.granularity import Granularity
from seatrial.quant.nearest import Nearest
from seatrial.quant.os_plus import OSPlus
from seatrial.quant.outlier_suppression import OutlierSuppression
from seatrial.quant.placement import place, quantizable
from seatrial.quant.smooth_quant import SmoothQuant


def rules(attention: Literal["all", "none"]) -> PlacementRules:
    """Inputs of linear operators are rounded, and both operands of attention products, or neither."""
    return PlacementRules("torch", "by-range", operator_outputs=False, attention_products=attention)


HEADS = ("lm_head", "classifier", "score")


def nearest(ranges: MinMax | Percentile | MeanSquaredError) -> Nearest:
    """Rounds alone, without bias correction."""
    return Nearest(ranges, bias_correction=False, equalization="none")


PLAIN = nearest(MinMax())
METHODS: Mapping[str, Quantizer] = {
    "min-max": PLAIN,
    "percentile": nearest(Percentile()),
    "omse": nearest(MeanSquaredError()),
    "outlier-suppression": OutlierSuppression(PLAIN),
    "smooth-quant": SmoothQuant(PLAIN),
    "smooth-quant, gated": SmoothQuant(PLAIN, gated=True),
    "os-plus": OSPlus(PLAIN),
    "os-plus, no shift": OSPlus(PLAIN, shift=False),
    "os-plus, no scale": OSPlus(PLAIN, scale=False),
    "os-plus, layer losses": OSPlus(PLAIN, objective="layers"),
    "os-plus, omse": OSPlus(nearest(MeanSquaredError())),
}
# name: (bits, scales of weights, scales of activations, operands of attention products)
SETTINGS: Mapping[str, tuple[str, str, str, Literal["all", "none"]]] = {
    "int8*": ("w8a8", "tensor", "tensor", "all"),
    "int8": ("w8a8", "channel", "tensor", "all"),
    "int6": ("w6a6", "channel", "tensor", "all"),
    "int4": ("w4a4", "channel", "tensor", "all"),
    "int8 linear": ("w8a8", "channel", "tensor", "none"),
    "int6 linear": ("w6a6", "channel", "tensor", "none"),
    "int6 token": ("w6a6", "channel", "token", "none"),
    "int4 token": ("w4a4", "channel", "token", "none"),
    "int4 group": ("w4a4", "group:64", "group:64", "none"),
}


def answers(subject: TextSubject, graph: Graph) -> Answers:
    """Judge a graph on the evaluation."""
    records = text_records(
        GraphPredictor(graph), subject.task, subject.evaluation, batch=subject.batch(32), pad=subject.tokenizer.pad
    )
    if subject.task_name == "classification":
        right = column(records, "correct").astype(float)
        return Answers(right, np.zeros(0), np.zeros(0))
    return Answers(np.zeros(0), column(records, "nll"), column(records, "tokens").astype(float))


def rounded(
    subject: TextSubject, method: Quantizer, setting: tuple[str, str, str, Literal["all", "none"]], seed: int
) -> Graph:
    """Return the network with all but its head rounded: no operator keeps 8 bits because it is the first or last."""
    graph, (bits, weights, activations, attention) = subject.model.graph, setting
    operands = rules(attention)
    heads = [name for name in quantizable(graph, operands) if name.split("/")[0].split(".")[-1] in HEADS]
    wanted = place(graph, operands, Bits.parse(bits), keep=[f"*={bits}", *heads])
    wanted = Granularity.parse(weights, activations).of(graph, wanted)
    recipe = method.plan(graph, subject.calibration_batches(), wanted, rng=generator(seed, "os-plus"))
    return realise(graph, recipe)


def rows_of(
    name: str, subjects: Sequence[TextSubject], settings: Sequence[str], methods: Sequence[str], work: Path
) -> list[dict[str, object]]:
    """Return a row for each setting and method of one network."""
    found = []
    plain = [
        kept(work / f"{name}-{n}-float.npz", lambda s=subject: answers(s, s.model.graph))
        for n, subject in enumerate(subjects)
    ]
    accuracy = subjects[0].task_name == "classification"
    for setting in settings:
        told: dict[str, list[Answers]] = {}
        for method in methods:
            told[method] = [
                kept(
                    work / f"{name}-{n}-{setting}-{method}.npz",
                    lambda s=subject, m=METHODS[method], g=SETTINGS[setting], n=n: answers(s, rounded(s, m, g, n)),
                )
                for n, subject in enumerate(subjects)
            ]
        for method, seeds in told.items():
            middle, low, high = against(plain, seeds)
            row: dict[str, object] = {"network": name, "setting": setting, "method": method, "seeds": len(seeds)}
            row |= {"metric": "accuracy" if accuracy else "perplexity"}
            row |= {"float": figure(plain, accuracy), "value": figure(seeds, accuracy)}
            row |= {"against_float": middle, "low": low, "high": high}
            if "os-plus" in told:
                ours = against(seeds, told["os-plus"])
                row |= {"os_plus_against_it": ours[0], "os_plus_low": ours[1], "os_plus_high": ours[2]}
            found.append(row)
            print({key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}, flush=True)
    return found


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", metavar="NAME=FOLDERS")
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration")
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--window", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = []
    for text in given.subjects:
        name, _, folders = text.partition("=")
        subjects = [
            open_text_subject(
                f"hf:{folder}",
                given.data,
                Settings(
                    calibration=given.calibration,
                    calibration_samples=given.calibration_samples,
                    limit=given.limit,
                    seed=number if given.calibration else 0,
                ),
                TextSettings(window=given.window),
            )
            for number, folder in enumerate(folders.split(","))
        ]
        rows += rows_of(name, subjects, given.settings.split(","), given.methods.split(";"), given.work)
        if given.csv is not None:
            write_csv(given.csv, rows)


if __name__ == "__main__":
    main()
