"""SysNoise on deployed ImageNet networks: what decoder, resize, colour, ceil mode and precision change.

    python benchmarks/sysnoise_imagenet.py --cache FOLDER [--shared FOLDER] [--out FOLDER] [--models NAME ...]

SqueezeNet 1.1, MobileNetV1 0.25, MobileNetV2 and EtinyNet go through `seatrial robustness` as float and W8A8 on ONNX
Runtime and OpenVINO. Decoders, resizes and the chain of the combined drop are asked on the 120 pictures of original
size (probably training pictures: changes count there, accuracy does not), everything that does not hang on the size of
a picture again on validation pictures of 227 pixels. At 224 pixels all of SqueezeNet's pools divide evenly, so its ceil
mode is asked once more at 227, from its safetensors file. The cache keeps each run: a killed one goes on. Writes all
cells and chains as CSV and prints the tables of the study. Needs the development data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from csv_table import flat, print_table, write_csv

import seatrial
from seatrial.jobs.noises import sysnoise_resizes

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("squeezenet1_1_imagenet", "mobilenet_v1_025_imagenet", "mobilenet_v2_imagenet", "etinynet_imagenet")
RESIZES = sysnoise_resizes()
ANY_SIZE = "color,precision,ceil_mode"
PICTURES = {
    "original": ("imagenet_original_120", f"decoder,{','.join(f'resize:{name}' for name in RESIZES)},{ANY_SIZE}"),
    "validation": ("imagenet_val_800", ANY_SIZE),
}
AT_227 = "squeezenet1_1 at 227 px"
RUNTIMES = ("onnxruntime", "openvino")
FIGURES = ("churn, %", "KL", "top-1, %", "change, points")
CELL = (
    *("model", "variant", "target", "name", "option", "status", "n", "clean", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "churn", "kl", "picture_difference", "reason"),
)


def run(name: str, pictures: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the JSON of one model on one set of pictures."""
    data, system = PICTURES[pictures]
    model: str | Path = given.shared / "models" / f"{name}.pt2"
    overrides: dict[str, Any] = {}
    if name == AT_227:
        model, system = "torchvision:squeezenet1_1", "ceil_mode"
        weights = given.shared / "models" / "squeezenet1_1_imagenet.safetensors"
        overrides = {"weights": weights, "input_size": (227, 227)}
    return seatrial.robustness(
        [model],
        given.shared / data,
        attacks="none",
        corruptions="none",
        system=system,
        target=",".join(RUNTIMES),
        calibration=str(given.shared / ("imagenet_val_800" if pictures == "original" else "imagenet_original_120")),
        limit=given.limit,
        batch=32,
        out=given.cache / f"{name}-{pictures}".replace(" ", "-"),
        overrides=overrides,
        progress=lambda done, of, text: _told(f"{name} {pictures}: {done} of {of}: {text}"),
    )


def _told(text: str) -> None:
    if not text.endswith("reading the pictures"):
        print(text, file=sys.stderr, flush=True)


def cell_rows(found: dict[str, Any], pictures: str, name: str) -> Iterable[dict[str, Any]]:
    """Return the cells as flat rows."""
    for cell in found["cells"]:
        yield {"pictures": pictures, **flat({key: cell[key] for key in CELL}), "model": name}


def chain_rows(found: dict[str, Any], pictures: str) -> Iterable[dict[str, Any]]:
    """Return the steps of the combined drop; the interval stands at the last one."""
    for entry in found["summary"]:
        head = {"pictures": pictures, **{key: entry[key] for key in ("model", "variant", "target")}}
        for i, step in enumerate(entry["chain"]):
            bounds = (
                entry["intervals"]["combined_drop"] if i == len(entry["chain"]) - 1 else {"low": None, "high": None}
            )
            yield head | {"step": i + 1, **step, "drop_low": bounds["low"], "drop_high": bounds["high"]}


def points(row: dict[str, Any], key: str, scale: float = 100.0) -> str:
    """Return a figure with its interval."""
    return f"{scale * row[key]:.2f} ({scale * row[f'{key}_low']:.2f} to {scale * row[f'{key}_high']:.2f})"


def figures(row: dict[str, Any]) -> tuple[str, ...]:
    """Return churn, divergence, accuracy of the reference pipeline and what changed of it."""
    return points(row, "churn"), f"{row['kl']:.4f}", f"{100 * row['clean']:.2f}", points(row, "difference")


def print_worst(cells: list[dict[str, Any]]) -> None:
    """Print each noise at its worst option by churn, on deployed W8A8."""
    rows = []
    mine = [c for c in cells if c["status"] == "done" and c["variant"] == "w8a8" and c["target"] in RUNTIMES]
    for key, group in groupby(mine, lambda c: (c["pictures"], c["model"], c["target"], c["name"])):
        options = list(group)
        worst = max(options, key=lambda c: c["churn"])
        mean = float(np.mean([c["churn"] for c in options]))
        rows.append([*key, str(worst["option"]), f"{100 * mean:.2f}", *figures(worst)])
    print_table(("pictures", "model", "runtime", "noise", "worst option", "mean churn, %", *FIGURES), rows)


def print_precision(cells: list[dict[str, Any]]) -> None:
    """Print what each arithmetic changes in the float network, on validation pictures."""
    mine = [c for c in cells if c["pictures"] == "validation" and c["name"] == "precision"]
    mine = [c for c in mine if c["variant"] == "float" and c["status"] == "done"]
    rows = [[c["model"], c["target"], str(c["option"]), *figures(c)] for c in mine]
    print_table(("model", "runtime", "precision", *FIGURES), rows)


def print_ranked(cells: list[dict[str, Any]]) -> None:
    """Print decoders and resizes by mean churn over models and runtimes, on deployed W8A8."""
    mine = [c for c in cells if c["pictures"] == "original" and c["variant"] == "w8a8" and c["target"] in RUNTIMES]
    mine = [c for c in mine if c["name"] in ("decoder", "resize") and c["status"] in ("done", "no-noise")]
    options = dict.fromkeys((c["name"], c["option"]) for c in mine)
    ranked = []
    for name, option in options:
        group = [c for c in mine if (c["name"], c["option"]) == (name, option)]
        churn = [c["churn"] or 0.0 for c in group]
        kl = [c["kl"] or 0.0 for c in group]
        pixels = float(np.mean([c["picture_difference"] or 0.0 for c in group]))
        ranked.append((float(np.mean(churn)), name, option, max(churn), float(np.mean(kl)), pixels, len(group)))
    rows = [
        [name, option, f"{100 * churn:.2f}", f"{100 * most:.2f}", f"{kl:.4f}", f"{pixels:.2f}", str(count)]
        for churn, name, option, most, kl, pixels, count in sorted(ranked, reverse=True)
    ]
    print_table(("noise", "option", "mean churn, %", "most, %", "KL", "pixels, levels", "cells"), rows)


def print_chains(chains: list[dict[str, Any]]) -> None:
    """Print the chain of the combined drop of the deployed networks, a line each."""
    rows = []
    for key, group in groupby(chains, lambda c: (c["pictures"], c["model"], f"{c['variant']} on {c['target']}")):
        steps = list(group)
        if steps[0]["target"] not in RUNTIMES:
            continue
        told = ", ".join(f"{step['noise']} {step['option']} {100 * step['drop']:.1f}" for step in steps)
        rows.append([*key, told, points(steps[-1], "drop")])
    print_table(("pictures", "model", "variant", "drop after each step, points", "combined drop"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for stores and deployed files")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "studies" / "data")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--pictures", nargs="*", default=list(PICTURES), choices=list(PICTURES))
    parser.add_argument("--limit", type=int, default=800, help="most pictures of a set")
    given = parser.parse_args()
    cells: list[dict[str, Any]] = []
    chains: list[dict[str, Any]] = []
    for pictures in given.pictures:
        for name in [*given.models, *([AT_227] if pictures == "validation" else [])]:
            found = run(name, pictures, given)
            cells += cell_rows(found, pictures, name)
            chains += chain_rows(found, pictures)
            write_csv(given.out / "sysnoise_imagenet_cells.csv", cells)
            write_csv(given.out / "sysnoise_imagenet_chains.csv", chains)
    print_worst(cells)
    print_ranked(cells)
    print_precision(cells)
    print_chains(chains)


if __name__ == "__main__":
    main()
