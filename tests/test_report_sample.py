"""A realistic result of a trial for the tests of the report, and the laws that it keeps itself."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from seatrial.core.chance import generator
from seatrial.metrics.intervals import wilson

LOGITS_ONLY = "no gradients: the file is opened by a runtime only"
NO_AV = "PyAV cannot decode 3 of 256 samples: progressive JPEG with 12 bits"


def latency(median: float, p10: float, p90: float, runs: int = 400) -> dict[str, Any]:
    return {"median": median, "p10": p10, "p90": p90, "runs": runs, "batch": 1, "threads": 2}


def cell(variant: str, family: str, name: str, value: float | None, **other: Any) -> dict[str, Any]:
    n = 256
    interval = None if value is None else wilson(round(value * n), n)
    row = {
        "model": "squeezenet1_1",
        "variant": variant,
        "family": family,
        "name": name,
        "option": None,
        "norm": None,
        "severity": None,
        "access": None,
        "metric": "top1",
        "value": value,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": n if interval else 0,
        "status": "done",
        "reason": None,
    }
    return row | other


def noises(variant: str, clean: float, *, gradients: bool, full: bool) -> list[dict[str, Any]]:
    rng = generator(3, variant, "noises")
    cells = []
    for name, hardness in (("fgsm", 0.42), ("pgd", 0.58)):
        for epsilon in ("1/255", "2/255", "4/255", "8/255") if full else ("2/255",):
            budget = int(epsilon.split("/")[0])
            value = max(0.0, clean * (1 - hardness) ** budget + rng.normal(0, 0.004))
            where = {"norm": "linf", "severity": epsilon, "access": "white-box" if gradients else "transfer"}
            cells.append(cell(variant, "attack", name, round(value, 4), **where))
    square = {"norm": "linf", "severity": "2/255", "access": "score"}
    if gradients:
        skipped = {"status": "not-applicable", "reason": "gradients are there, so fgsm and pgd are asked instead"}
        cells.append(cell(variant, "attack", "square", None, **square, **skipped))
    else:
        cells.append(cell(variant, "attack", "square", round(clean * 0.71, 4), **square))
    for name, hardness in (("gaussian_noise", 0.13), ("motion_blur", 0.11), ("brightness", 0.03), ("jpeg", 0.05)):
        for severity in range(1, 6) if full else (3,):
            value = max(0.0, clean * (1 - hardness) ** severity + rng.normal(0, 0.006))
            cells.append(cell(variant, "corruption", name, round(value, 4), severity=severity))
    for option in ("pillow-bilinear", "opencv-bilinear", "opencv-nearest"):
        value = clean - (0.028 if option.endswith("nearest") else abs(rng.normal(0, 0.006)))
        cells.append(cell(variant, "system", "resize", round(value, 4), option=option))
    same = {"status": "no-noise", "reason": "both decoders give the same bytes on this build (libjpeg-turbo)"}
    cells.append(cell(variant, "system", "decoder", None, option="pillow", **same))
    cells.append(cell(variant, "system", "decoder", round(clean - 0.001, 4), option="opencv"))
    cells.append(cell(variant, "system", "decoder", None, option="pyav", status="failed", reason=NO_AV))
    if gradients:
        cells.append(cell(variant, "system", "precision", round(clean - 0.0005, 4), option="fp16"))
    else:
        none = {"status": "not-applicable", "reason": "integers have no float arithmetic to change"}
        cells.append(cell(variant, "system", "precision", None, option="fp16", **none))
    return cells


def sample_result(*, full: bool = False) -> dict[str, Any]:
    """A trial of SqueezeNet on two runtimes: as `--noise full` (five severities) or `quick` (one)."""

    def variant(name: str, target: str, bits: str, size: int, time: Any, top1: float, same: Any) -> dict[str, Any]:
        return {
            "name": name,
            "target": target,
            "bits": bits,
            "size_bytes": size,
            "latency_ms": time,
            "metric": "top1",
            "value": top1,
            "top1": top1,
            "agreement": same[0],
            "agreement_simulated": same[1],
            "noise": noises(name, top1, gradients=name == "float", full=full) if target != "onnxruntime" else [],
        }

    return {
        "model": {
            "name": "squeezenet1_1",
            "source": "timm:squeezenet1_1",
            "digest": "9f" * 16,
            "parameters": 1_235_496,
        },
        "data": {
            "name": "imagenet_val_800",
            "n": 800,
            "classes": 1000,
            "label_rule": "wnid",
            "digest": "c4" * 16,
            "bad": [{"sample": "n01440764/ILSVRC_39.JPEG", "reason": "truncated after 12,288 of 60,112 bytes"}],
        },
        "calibration": {"name": "drawn from imagenet_val_800", "n": 200, "seed": 0, "digest": "07" * 16},
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8488C",
            "cores": 2,
            "threads": 2,
            "instruction_sets": ["avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"],
            "memory_bytes": 16_636_000_000,
            "system": "Linux 6.1 x86_64",
            "gpus": [],
            "libraries": {"torch": "2.12.1", "openvino": "2026.4.1", "onnxruntime": "1.32.0", "numpy": "2.4.0"},
        },
        "variants": [
            variant("float", "openvino", "float32", 4_966_400, latency(3.21, 3.14, 3.52), 0.5788, (1.0, None)),
            variant("bf16", "openvino", "bf16", 4_966_400, latency(1.87, 1.81, 2.06), 0.5775, (0.9938, None)),
            variant("w8a8", "openvino", "w8a8", 1_281_022, latency(1.34, 1.30, 1.49), 0.5763, (0.9563, 0.9975)),
            variant("float", "onnxruntime", "float32", 4_966_400, latency(4.02, 3.91, 4.44), 0.5788, (1.0, None)),
            variant("w8a8", "onnxruntime", "w8a8", 1_281_022, latency(2.29, 2.2, 2.71), 0.575, (0.955, 0.9963)),
            variant("w8a8", "torch", "w8a8", 1_281_022, None, 0.5763, (0.9563, 1.0)),
        ],
        "warnings": ["1 of 801 samples is bad and was left out: n01440764/ILSVRC_39.JPEG"],
        "store": "/data/trials/squeezenet1_1-3f2a/store",
        "report": "/data/trials/squeezenet1_1-3f2a/report.html",
    }


def picture(kind: str, edge: int = 96) -> bytes:
    """A small PNG with something to see: a disk over a gradient, changed a little by `kind`."""
    y, x = np.mgrid[0:edge, 0:edge] / edge
    disk = ((x - 0.5) ** 2 + (y - 0.52) ** 2 < 0.09)[..., None]
    pixels = np.where(disk, [235, 160, 60], np.stack([70 + 90 * y, 110 + 70 * x, 190 - 80 * y], -1)).astype(float)
    rng = generator(0, kind)
    if kind in ("gaussian_noise", "pgd", "fgsm"):
        pixels += rng.normal(0, 34 if kind == "gaussian_noise" else 7, pixels.shape)
    elif kind == "motion_blur":
        pixels = np.mean([np.roll(pixels, shift, 1) for shift in range(-6, 7)], 0)
    elif kind == "brightness":
        pixels += 70
    elif kind == "jpeg":
        pixels = np.repeat(np.repeat(pixels[4::8, 4::8], 8, 0), 8, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def sample_extras() -> dict[str, Any]:
    """Settings, fallbacks, sites with their errors, and pictures, as a trial hands them to the report."""
    rng = generator(5, "sites")
    sites = [
        {"site": f"features.{i}.{branch}/conv2d#0:{edge}", "bits": 8, "sqnr_db": round(float(rng.normal(31, 5)), 2)}
        for i in range(3, 13)
        for branch in ("squeeze", "expand1x1", "expand3x3")
        for edge in ("input0", "weight")
    ]
    shown = [
        (None, None, None, "orange", "orange"),
        ("fgsm", None, "2/255", "lemon", "orange"),
        ("pgd", None, "2/255", "ping-pong ball", "ping-pong ball"),
        ("gaussian_noise", None, 3, "orange", "lemon"),
        ("motion_blur", None, 3, "orange", "orange"),
        ("brightness", None, 3, "orange", "orange"),
        ("jpeg", None, 3, "orange", "orange"),
        ("resize", "opencv-nearest", None, "orange", "orange"),
    ]
    pictures = [
        {
            "noise": noise,
            "option": option,
            "severity": severity,
            "png": base64.b64encode(picture(noise or "")).decode() if i % 2 else picture(noise or ""),
            "label": "orange",
            "float_answer": by_float,
            "w8a8_answer": by_w8a8,
        }
        for i, (noise, option, severity, by_float, by_w8a8) in enumerate(shown)
    ]
    return {
        "settings": {
            "target": "auto (openvino)",
            "method": "nearest",
            "bits": "w8a8",
            "noise": "quick",
            "ranges": "minmax",
            "bias_correction": True,
            "keep": [],
            "preprocessing": {"resize": 256, "interpolation": "bicubic", "crop": 224, "source": "timm pretrained_cfg"},
            "seed": 0,
            "command": "seatrial trial timm:squeezenet1_1 --data imagenet_val_800 --noise quick",
        },
        "fallbacks": [
            "classifier.1/conv2d#0:weight stays at 8 bits: last layer",
            {"site": "features.2/max_pool2d#0:input0", "what": "kept in float", "why": "its input is never negative"},
        ],
        "sites": sites,
        "pictures": pictures,
        "paired": {"w8a8@openvino": {"difference": -0.0025, "low": -0.0113, "high": 0.0063}},
    }


def test_the_sample_is_json_and_deterministic() -> None:
    for full in (False, True):
        text = json.dumps(sample_result(full=full), allow_nan=False)
        assert text == json.dumps(sample_result(full=full), allow_nan=False)


def test_the_sample_has_what_a_report_must_cope_with() -> None:
    result = sample_result(full=True)
    cells = [cell for variant in result["variants"] for cell in variant["noise"]]
    assert {cell["status"] for cell in cells} == {"done", "no-noise", "not-applicable", "failed"}
    assert {cell["family"] for cell in cells} == {"attack", "corruption", "system"}
    assert {cell["severity"] for cell in cells if cell["family"] == "corruption"} == {1, 2, 3, 4, 5}
    assert len({cell["severity"] for cell in cells if cell["family"] == "attack"}) == 4
    assert None in [variant["latency_ms"] for variant in result["variants"]]
    assert all((cell["value"] is None) == (cell["status"] != "done") for cell in cells)
