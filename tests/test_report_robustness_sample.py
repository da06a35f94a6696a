"""A realistic result of `seatrial robustness` for the tests of its report, and the laws that it keeps itself."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
from test_report_sample import sample_extras

from seatrial.core.chance import generator
from seatrial.metrics.corruption_error import ALEXNET_ERROR, SEVERITIES
from seatrial.metrics.intervals import wilson

N, N_ATTACKS = 800, 256
MODELS = {"squeezenet1_1": 0.579, "mobilenetv3_large": 0.742}
VARIANTS = {("float", "torch"): 0.0, ("w8a8", "torch"): -0.006, ("w8a8", "onnxruntime"): -0.009}
EPSILONS = ("0.5/255", "2/255", "8/255")
DECODERS = ("pillow", "opencv", "pyav")
RESIZES = tuple(
    [f"pillow-{kind}" for kind in ("bilinear", "nearest", "box", "hamming", "bicubic", "lanczos")]
    + [f"opencv-{kind}" for kind in ("bilinear", "nearest", "area", "bicubic", "lanczos")]
)
SYSTEM = {
    "decoder": ("opencv", "pyav"),
    "resize": RESIZES[1:],
    "color": ("yuv444-exact", "nv12-integer"),
    "ceil_mode": ("ceil",),
    "precision": ("fp16", "bf16"),
}
NO_POOL = "no pooling that could round up"


def cell(where: dict[str, Any], family: str, name: str, value: float | None, clean: float, **other: Any) -> dict:
    n = N_ATTACKS if family == "attack" else N
    interval = None if value is None else wilson(round(value * n), n)
    empty = ("difference", "difference_low", "difference_high", "churn", "kl", "picture_difference")
    return {
        **where,
        "family": family,
        "name": name,
        **dict.fromkeys(("option", "norm", "severity", "access")),
        "metric": "top1",
        "value": value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": n if interval else 0,
        "status": "done",
        "reason": None,
        "clean": clean,
        **dict.fromkeys((*empty, "AR", "robust_accuracy", "zero_gradient", "queries")),
        **other,
    }


def attacks(where: dict[str, Any], clean: float, *, full: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    asked: list[tuple[str, str | None, float]] = (
        [("fgsm", None, 0.75), ("pgd", None, 0.62), ("square", None, 0.9)] if full else [("pgd", None, 0.62)]
    )
    if not full and where["variant"] != "float":
        asked.append(("pgd", "from-float", 0.7))
    cells = []
    for name, option, left in asked:
        for epsilon in EPSILONS if full else ("2/255",):
            standing = round(clean * left ** (255 * float(Fraction(epsilon.split("/")[0]) / 255)), 4)
            access = "score" if name == "square" else "transfer" if option else "white-box"
            climbs = name != "square"
            figures = {"AR": standing / clean, "robust_accuracy": standing, "queries": 40.0 if climbs else 281.4}
            figures["zero_gradient"] = float(rng.uniform(0, 0.01)) if climbs else None
            place = {"option": option, "norm": "linf", "severity": epsilon, "access": access}
            cells.append(cell(where, "attack", name, standing, clean, **place, **figures))
    return cells


def corruptions(where: dict[str, Any], clean: float, *, full: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    names = list(ALEXNET_ERROR) if full else ["gaussian_noise", "motion_blur", "fog", "jpeg_compression"]
    cells = []
    for place, name in enumerate(names):
        for severity in SEVERITIES if full else (3,):
            value = round(clean * (0.96 - 0.015 * (place % 7)) ** (severity**1.5) + float(rng.normal(0, 0.004)), 4)
            cells.append(cell(where, "corruption", name, value, clean, severity=severity))
    return cells


def moved(where: dict[str, Any], clean: float, name: str, option: str, rng: np.random.Generator) -> dict[str, Any]:
    size = float(rng.gamma(1.5, 0.004))
    mean = {"value": 2.5 * size, "low": 1.9 * size, "high": 3.3 * size}
    figures = {
        "difference": -size,
        "difference_low": -size - 0.008,
        "difference_high": -size + 0.008,
        "churn": mean,
        "kl": {key: value / 3 for key, value in mean.items()},
        "picture_difference": {key: 80 * value for key, value in mean.items()},
    }
    return cell(where, "system", name, round(clean - size, 5), clean, option=option, **figures)


def system(where: dict[str, Any], clean: float, *, full: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    chosen = SYSTEM if full else {"decoder": ("opencv",), "resize": ("opencv-bilinear",), "ceil_mode": ("ceil",)}
    cells = []
    for name, options in chosen.items():
        for option in options:
            if name == "ceil_mode" and where["model"] != "squeezenet1_1":
                none = {"status": "not-applicable", "reason": NO_POOL, "option": option}
                cells.append(cell(where, "system", name, None, clean, **none))
            elif name == "decoder" and option == "pyav" and where["target"] == "onnxruntime":
                failed = {"status": "failed", "reason": "PyAV cannot decode 3 of 800 samples", "option": option}
                cells.append(cell(where, "system", name, None, clean, **failed))
            else:
                cells.append(moved(where, clean, name, option, rng))
    for decoder in DECODERS if full else ():
        for resize in RESIZES:
            if (decoder, resize) == (DECODERS[0], RESIZES[0]):
                same = {
                    "status": "no-noise",
                    "reason": "it is what the reference does",
                    "option": f"{decoder}+{resize}",
                }
                cells.append(cell(where, "system", "decoder+resize", None, clean, **same))
            else:
                cells.append(moved(where, clean, "decoder+resize", f"{decoder}+{resize}", rng))
    return cells


def summary(where: dict[str, Any], clean: float, cells: list[dict[str, Any]], *, full: bool) -> dict[str, Any]:
    robust: dict[str, dict[str, float]] = {}
    for row in cells:
        if row["family"] == "attack":
            name = ":".join(part for part in (row["name"], row["norm"], row["option"]) if part)
            robust.setdefault(name, {})[row["severity"]] = row["AR"]
    done = [row for row in cells if row["family"] == "system" and row["status"] == "done"]
    drops: dict[str, dict[str, float]] = {}
    for row in done:
        if "+" not in row["name"]:
            drops.setdefault(row["name"], {})[row["option"]] = -row["difference"]
    worst = {name: max(found, key=found.__getitem__) for name, found in drops.items()}
    chain, lost = [], 0.0
    for name, option in worst.items():
        # A step may also give something back.
        lost += drops[name][option] if name != "color" else -0.002
        chain.append({"noise": name, "option": option, "value": clean - lost, "drop": lost})
    grid = [row["value"] for row in done if row["name"] == "decoder+resize"]
    share = [row["value"] for row in cells if row["family"] == "corruption"]
    sizes = ("small", "middle", "large") if full else ("middle",)
    worst_case = dict(zip(sizes, (0.52, 0.17, 0.004) if full else (0.31,)))
    intervals: dict[str, Any] = {
        "WCAR": {name: {"low": max(0.0, value - 0.03), "high": value + 0.03} for name, value in worst_case.items()}
    }
    if full:
        intervals |= {"NR": {"low": 0.38, "high": 0.42}, "mCE": {"low": 78.1, "high": 83.4}}
        intervals |= {"relative_mCE": {"low": 97.3, "high": 111.0}, "SR_mean": {"low": 0.54, "high": 0.61}}
    intervals["clean"] = {"low": clean - 0.035, "high": clean + 0.034}
    intervals["combined_drop"] = {"low": -0.004, "high": 0.061}
    return {
        **where,
        "clean": clean,
        "AR": robust,
        "WCAR": worst_case,
        "WCAR_attacks": {name: ["pgd:linf", "square:linf"] if full else ["pgd:linf"] for name in sizes},
        "NR": float(np.mean(share)) if full else None,
        "mCE": 80.7 if full else None,
        "relative_mCE": 104.2 if full else None,
        "SR_mean": float(np.mean(grid)) if grid else None,
        "SR_std": float(np.std(grid, ddof=1)) if grid else None,
        "SR_ddof": 1,
        "SR_cells": len(grid),
        "system": [
            {"noise": name, "mean": sum(found.values()) / len(found), "max": max(found.values()), "option": worst[name]}
            for name, found in drops.items()
        ],
        "combined_drop": chain[-1]["drop"],
        "chain": chain,
        "intervals": intervals,
    }


def sample_robustness(*, full: bool = False) -> dict[str, Any]:
    """The JSON of a run: the quick profile on one model, or two models with every corruption, attacks and the grid."""
    cells: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    models = MODELS if full else {"squeezenet1_1": 0.579}
    for model, top1 in models.items():
        for (variant, target), change in VARIANTS.items():
            where = {"model": model, "variant": variant, "target": target}
            rng, clean = generator(7, model, variant, target), top1 + change
            mine = attacks(where, clean, full=full, rng=rng)
            mine += corruptions(where, clean, full=full, rng=rng) + system(where, clean, full=full, rng=rng)
            cells += mine
            entries.append(summary(where, clean, mine, full=full))
    finding = {"attack": "pgd", "norm": "linf", "severity": "8/255", "sign": "weaker attacker wins", "by": "square"}
    text = "square, which sees scores only, leaves 0.8 points fewer standing than pgd"
    last = {key: entries[-1][key] for key in ("model", "variant", "target")}
    return {
        "profile": "robustmq" if full else "quick",
        "models": [{"name": name, "source": f"timm:{name}", "digest": "3f" * 16, "labels": "wnid"} for name in models],
        "data": {
            "name": "imagenet_val_800",
            "n": N,
            "n_attacks": N_ATTACKS,
            "classes": 1000,
            "digest": "c4" * 16,
            "bad": [{"sample": "n01440764/ILSVRC_39.JPEG", "reason": "truncated after 12,288 of 60,112 bytes"}],
        },
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8488C",
            "cores": 2,
            "threads": 2,
            "instruction_sets": ["avx2", "avx512_vnni"],
            "memory_bytes": 16_636_000_000,
            "gpus": [],
            "libraries": {"torch": "2.12.1", "onnxruntime": "1.32.0"},
        },
        "seed": 0,
        "cells": cells,
        "summary": entries,
        "masking": [{**last, **finding, "value": 0.008, "text": text}] if full else [],
        "warnings": ["1 of 801 samples is bad and was left out: n01440764/ILSVRC_39.JPEG"],
        "store": "/data/robustness-3f2a/store",
        "report": "/data/robustness-3f2a/report.html",
    }


def sample_pictures() -> dict[str, Any]:
    """The pictures of a run as the job hands them to the report."""
    return {"pictures": sample_extras()["pictures"]}


def test_the_sample_is_json_and_deterministic() -> None:
    for full in (False, True):
        text = json.dumps(sample_robustness(full=full), allow_nan=False)
        assert text == json.dumps(sample_robustness(full=full), allow_nan=False)


def test_the_sample_has_what_a_report_must_cope_with() -> None:
    cells = sample_robustness(full=True)["cells"]
    assert {row["status"] for row in cells} == {"done", "no-noise", "not-applicable", "failed"}
    for where in {(row["model"], row["variant"], row["target"]) for row in cells}:
        mine = [row for row in cells if (row["model"], row["variant"], row["target"]) == where]
        count = {name: sum(row["family"] == name for row in mine) for name in ("attack", "corruption")}
        assert count == {"attack": 9, "corruption": 75}
        assert sum(row["name"] == "decoder+resize" for row in mine) == 33
