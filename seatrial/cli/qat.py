"""`seatrial qat`: train a network with its rounds in place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli import options as o
from seatrial.errors import unknown_name

FloatModel = Annotated[
    str,
    typer.Argument(
        help="A float network: timm:NAME, torchvision:NAME, hf:REPO_OR_FOLDER, FILE.pt2, digits-cnn, digits-vit or "
        "package.module:factory (which runs that code)."
    ),
]
Train = Annotated[
    str | None, typer.Option(help="Data to train on; without: four fifths of --data, the rest is judged on.")
]
TrainLimit = Annotated[int | None, typer.Option(help="Train on this many samples, drawn balanced over classes.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training data.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate (SGD, one cycle).")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay; norms, biases and grids have none.")]
Augment = Annotated[str, typer.Option(help="none, shift or shift-flip; digits and text must not be mirrored.")]
Norms = Annotated[str, typer.Option(help="live, or frozen: batch norms keep their statistics.")]


def qat(
    model: FloatModel,
    data: o.Data = None,
    train: Train = None,
    weights: o.Weights = None,
    method: Annotated[str, typer.Option(help="lsq, pact or dorefa.")] = "lsq",
    bits: Annotated[str, typer.Option(help="One number for weights and activations, or both as in w4a8.")] = "4",
    ends: Annotated[
        str, typer.Option(help="First and last operator with weights: 8 (at least 8 bits), same or float.")
    ] = "8",
    placement: Annotated[
        str, typer.Option(help="Where rounds stand: target, weighted, or auto: target for 8 bits, else weighted.")
    ] = "auto",
    target: Annotated[str, typer.Option(help="torch, onnxruntime, openvino or litert.")] = "onnxruntime",
    epochs: Epochs = 10,
    rate: Rate = 0.01,
    weight_decay: WeightDecay = 1e-4,
    augment: Augment = "shift",
    norms: Norms = "live",
    keep: o.Keep = None,
    noise: o.Noise = "none",
    limit: o.Limit = None,
    train_limit: TrainLimit = None,
    out: Annotated[Path, typer.Option(help="Folder for model, recipe, checkpoint and script.")] = Path("qat"),
    json: o.JsonFile = None,
    classes: o.Classes = None,
    calibration_samples: Annotated[int, typer.Option(help="Training samples that activations start from.")] = 256,
    max_bad: o.MaxBad = "1%",
    seed: o.Seed = 0,
    batch: o.Batch = 64,
    threads: o.Threads = 0,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.ResizeOption = None,
    crop: o.Crop = None,
    interpolation: o.Interpolation = None,
) -> None:
    """Train a float network further with rounded weights and activations, and write files that run on a target.

    Example: seatrial qat timm:resnet18 --weights resnet18.safetensors --data pictures/ --method lsq --bits 4
    """
    from seatrial.catalogue import entries
    from seatrial.cli.screen import OUT, progress_bar, show_rows, write_json
    from seatrial.jobs.qat import qat as run
    from seatrial.jobs.trainee import Lesson

    if method not in entries("qat"):
        raise unknown_name("QAT method", method, entries("qat"))
    settings = o.settings_of(
        target=target, keep=keep, noise=noise, limit=limit, calibration_samples=calibration_samples, max_bad=max_bad,
        seed=seed, batch=batch, threads=threads,
    )  # fmt: skip
    lesson = Lesson(epochs=epochs, rate=rate, weight_decay=weight_decay, batch=batch, augment=augment, norms=norms)  # pyright: ignore[reportArgumentType]
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    with progress_bar() as tell:
        found = run(
            model, data, method=method, bits=f"w{bits}a{bits}" if bits.isdecimal() else bits, ends=ends,  # pyright: ignore[reportArgumentType]
            placement=placement, lesson=lesson, train=train, train_limit=train_limit, out=out, settings=settings,  # pyright: ignore[reportArgumentType]
            overrides=overrides, progress=tell,
        )  # fmt: skip
    row = {key: found[key] for key in ("method", "target", "bits", "size_bytes", "float_value", "value", "n")}
    latency = found["latency_ms"]["median"] if found["latency_ms"] else None
    show_rows(str(found["model"]["name"]), [{**row, "latency_ms": latency}])
    for warning in found["warnings"]:
        OUT.print(f"note: {warning}", soft_wrap=True, markup=False)
    OUT.print(f"files: {found['files'][0]} and {len(found['files']) - 1} more", soft_wrap=True, markup=False)
    write_json(found, json)
