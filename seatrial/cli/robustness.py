"""`seatrial robustness`: attacks, corruptions and system noise under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seatrial.cli import options as o


def robustness(
    models: Annotated[
        list[str],
        typer.Argument(help="One or more models, each as `seatrial trial` takes it: names, .pt2, .onnx, .tflite."),
    ],
    data: o.Data = None,
    profile: Annotated[str, typer.Option(help="quick, robustmq, sysnoise or full.")] = "quick",
    attacks: Annotated[
        str | None, typer.Option(help="none, all, names or NAME:NORM:EPSILON such as pgd:linf:2/255, with commas.")
    ] = None,
    corruptions: Annotated[str | None, typer.Option(help="none, all, names or NAME:SEVERITY, with commas.")] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help="none, all, names or NAME:OPTION, with commas; decoder:pyav+resize:opencv-area acts at once."
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="Runtimes with commas, or torch (simulation alone); auto: ONNX Runtime, or all of a file."),
    ] = "auto",
    bits: Annotated[str, typer.Option(help="Bits of weights and activations, such as w8a8, or float.")] = "w8a8",
    weights: o.Weights = None,
    limit: o.Limit = None,
    attack_limit: Annotated[
        int | None, typer.Option(help="Samples under attack; by default 256 for quick, else all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default named after the question.")] = None,
    json: o.JsonFile = None,
    classes: o.Classes = None,
    calibration: o.Calibration = None,
    calibration_samples: o.CalibrationSamples = 256,
    max_bad: o.MaxBad = "1%",
    seed: o.Seed = 0,
    batch: o.Batch = 64,
    threads: o.Threads = 0,
    jobs: o.Jobs = 1,
    ray: o.Ray = None,
    cache_gb: o.CacheGb = 0.0,
    retry_failed: Annotated[bool, typer.Option(help="Ask failed cells again.")] = False,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.ResizeOption = None,
    crop: o.Crop = None,
    interpolation: o.Interpolation = None,
) -> None:
    """Put models through attacks, corruptions and system noise: float, quantized and deployed.

    Example: seatrial robustness squeezenet.pt2 deployed.onnx --data pictures/ --profile sysnoise --limit 500
    """
    from seatrial.cli.screen import OUT, progress_bar, show_rows, write_json
    from seatrial.jobs.robustness import robustness as run

    settings = o.settings_of(
        target=target, bits=bits, limit=limit, calibration=calibration, calibration_samples=calibration_samples,
        max_bad=max_bad, seed=seed, batch=batch, threads=threads, jobs=jobs, ray=ray, cache_gb=cache_gb,
        retry_failed=retry_failed,
    )  # fmt: skip
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    with progress_bar() as tell:
        found = run(
            models,
            data,
            profile=profile,
            attacks=attacks,
            corruptions=corruptions,
            system=system,
            attack_samples=attack_limit,
            out=out,
            settings=settings,
            overrides=overrides,
            progress=tell,
        )
    several = len(found["models"]) > 1
    rows = [_row(entry, several) for entry in found["summary"]]
    names = dict.fromkeys(name for row in rows for name in row)
    who = "robustness" if several else found["models"][0]["name"]
    show_rows(f"{who}, %", [{name: row.get(name, "-") for name in names} for row in rows])
    for finding in found["masking"]:
        OUT.print(f"{finding['variant']} on {finding['target']}: {finding['text']}", soft_wrap=True, markup=False)
    for warning in found["warnings"]:
        OUT.print(f"note: {warning}", soft_wrap=True, markup=False)
    OUT.print(f"report: {found['report']}", soft_wrap=True, markup=False)
    write_json(found, json)


def _row(entry: dict[str, Any], several: bool) -> dict[str, Any]:
    """Return what fits a line, in percent: the worst case of each magnitude and one figure for each other family."""
    shares = {"clean": entry["clean"]}
    shares |= {f"WCAR {name}": value for name, value in entry["WCAR"].items()}
    shares |= {"NR": entry["NR"], "SR": entry["SR_mean"], "SR std": entry["SR_std"], "drop": entry["combined_drop"]}
    row: dict[str, Any] = {"model": entry["model"]} if several else {}
    row["variant"] = f"{entry['variant']} on {entry['target']}"
    row |= {name: f"{100 * value:.1f}" for name, value in shares.items() if value is not None}
    return row if entry["mCE"] is None else {**row, "mCE": f"{entry['mCE']:.1f}"}
