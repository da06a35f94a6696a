"""`seatrial harden`: train a network so that it holds under noise, or let it adapt at test time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seatrial.cli import options as o
from seatrial.cli.qat import Augment, Epochs, FloatModel, Norms, Rate, Train, TrainLimit, WeightDecay


def harden(
    model: FloatModel,
    by: Annotated[str, typer.Option(help="mix, augmix, adversarial or tent.")],
    data: o.Data = None,
    train: Train = None,
    weights: o.Weights = None,
    epsilon: Annotated[str, typer.Option(help="Budget of adversarial training in L-infinity.")] = "8/255",
    epochs: Epochs = 10,
    rate: Rate = 0.01,
    weight_decay: WeightDecay = 1e-4,
    augment: Augment = "shift",
    norms: Norms = "live",
    noise: o.Noise = "none",
    limit: o.Limit = None,
    train_limit: TrainLimit = None,
    out: Annotated[Path, typer.Option(help="Folder for the hardened model and the checkpoint.")] = Path("hardened"),
    json: o.JsonFile = None,
    classes: o.Classes = None,
    max_bad: o.MaxBad = "1%",
    seed: o.Seed = 0,
    batch: o.Batch = 64,
    threads: o.Threads = 0,
    jobs: o.Jobs = 1,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.ResizeOption = None,
    crop: o.Crop = None,
    interpolation: o.Interpolation = None,
) -> None:
    """Harden a float network against noise, and judge it before and after.

    Example: seatrial harden digits-cnn --by augmix --epochs 3 --noise gaussian_noise:3,pgd:linf:2/255
    """
    from seatrial.cli.screen import OUT, progress_bar, show_rows, write_json
    from seatrial.jobs.harden import harden as run
    from seatrial.jobs.trainee import Lesson

    settings = o.settings_of(
        target="torch", noise=noise, limit=limit, max_bad=max_bad, seed=seed, batch=batch, threads=threads, jobs=jobs
    )
    lesson = Lesson(epochs=epochs, rate=rate, weight_decay=weight_decay, batch=batch, augment=augment, norms=norms)  # pyright: ignore[reportArgumentType]
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    with progress_bar() as tell:
        found = run(
            model, data, by=by, epsilon=epsilon, lesson=lesson, train=train, train_limit=train_limit, out=out,
            settings=settings, overrides=overrides, progress=tell,
        )  # fmt: skip
    before, after = found["variants"]
    rows = [{"under": "clean", before["name"]: before["value"], after["name"]: after["value"]}]
    for plain, hard in zip(before["noise"], after["noise"], strict=True):
        parts = (plain["name"], plain["option"], plain["norm"], plain["severity"])
        name = ":".join(str(part) for part in parts if part is not None)
        rows.append({"under": name, before["name"]: plain["value"], after["name"]: hard["value"]})
    show_rows(f"{found['model']['name']}, {before['metric']}", rows)
    for warning in found["warnings"]:
        OUT.print(f"note: {warning}", soft_wrap=True, markup=False)
    if found["files"]:
        OUT.print(f"model: {found['files'][0]}", soft_wrap=True, markup=False)
    write_json(found, json)
