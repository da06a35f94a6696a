"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seatrial.errors import BadInput
from seatrial.jobs.settings import Settings, noise_setting

MODEL = (
    "timm:NAME, torchvision:NAME, hf:REPO_OR_FOLDER, FILE.pt2, FILE.onnx, FILE.tflite, digits-cnn, digits-vit, or "
    "package.module:factory (which runs that code)."
)
Model = Annotated[str, typer.Argument(help=MODEL)]
Weights = Annotated[
    str | None, typer.Option(help="Weights: a safetensors file or a checkpoint, or the word 'random'.", metavar="FILE")
]
Data = Annotated[
    str | None,
    typer.Option(help="A folder with a folder per class, or a folder or .tar with labels.csv; without: 'digits'."),
]
PicturesOrTexts = Annotated[
    str | None,
    typer.Option(
        help="A folder with a folder per class, or a folder or .tar with labels.csv; without: 'digits'. For a text "
        "model FILE.tsv, .csv, .jsonl or .txt."
    ),
]
TEXTS = "Text models"
Task = Annotated[
    str | None,
    typer.Option(
        help="classification, perplexity or multiple-choice; by default what the model's head answers.",
        rich_help_panel=TEXTS,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        help="The column of the texts: its name, or its number from 1 in a file without a heading.",
        rich_help_panel=TEXTS,
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="The column of the labels, named likewise.", rich_help_panel=TEXTS)
]
Window = Annotated[
    int | None,
    typer.Option(help="Most tokens of a row; by default what the model reads at once.", rich_help_panel=TEXTS),
]
Stride = Annotated[
    int | None,
    typer.Option(help="Perplexity: tokens from window to window; by default none overlap.", rich_help_panel=TEXTS),
]
Classes = Annotated[Path | None, typer.Option(help="One class name a line, or CSV of name,label.", metavar="FILE")]
Target = Annotated[str, typer.Option(help="auto, torch, onnxruntime, openvino or litert.")]
Method = Annotated[str, typer.Option(help="The quantizer; see `seatrial list`.")]
BitsOption = Annotated[str, typer.Option(help="Bits of weights and activations, such as w8a8.")]
Ranges = Annotated[str, typer.Option(help="default, minmax, percentile, mse, moving-average or token-wise.")]
BiasCorrection = Annotated[
    bool | None,
    typer.Option(help="Correct biases for the mean error of rounded weights; by default for networks on pictures."),
]
Equalization = Annotated[str, typer.Option(help="depthwise, cross-layer or none.")]
Keep = Annotated[
    list[str] | None, typer.Option(help="PATTERN[=PRECISION]: leave sites out of quantization by glob; repeatable.")
]
Noise = Annotated[
    str, typer.Option(help="none, quick, full, a list such as pgd:linf:2/255,gaussian_noise:3, or FILE.toml.")
]
Limit = Annotated[int | None, typer.Option(help="Evaluate on this many samples, drawn balanced over classes.")]
Calibration = Annotated[str | None, typer.Option(help="Data to calibrate on, instead of a draw from --data.")]
CalibrationSamples = Annotated[int, typer.Option(help="How many samples to calibrate on.")]
MaxBad = Annotated[str, typer.Option(help="Share of unreadable samples above which the run fails: 0.01 or 1%.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Batch = Annotated[int, typer.Option(help="Samples in a batch.")]
Threads = Annotated[int, typer.Option(help="Threads of deployed models; 0: the cores of this machine, at most 8.")]
Jobs = Annotated[int, typer.Option(help="Local processes that share the work.")]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster that shares the work.")]
CacheGb = Annotated[float, typer.Option(help="Keep up to this many GB of loaded pictures beside the store.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON.", metavar="FILE", dir_okay=False)
]
InputSize = Annotated[str | None, typer.Option(help="Network input as HEIGHTxWIDTH or one number.")]
Mean = Annotated[str | None, typer.Option(help="Normalization: mean of R,G,B in [0, 1].", metavar="R,G,B")]
Std = Annotated[str | None, typer.Option(help="Normalization: standard deviation of R,G,B.", metavar="R,G,B")]
ResizeOption = Annotated[int | None, typer.Option("--resize", help="Resize the short side to this; 0: not at all.")]
Crop = Annotated[str | None, typer.Option(help="Centre crop as HEIGHTxWIDTH or one number.")]
Interpolation = Annotated[str | None, typer.Option(help="nearest, bilinear, bicubic, lanczos, box or hamming.")]


def share(text: str, option: str) -> float:
    """Read a fraction or a percentage; raises BadInput for another text."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise BadInput(f"{option} {text}", "a fraction or a percentage", "write for example 0.01 or 1%") from error


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read comma-separated numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"{option} {text}", "numbers separated by commas", "write for example 0.5,0.5,0.5") from error


def size(text: str | None, option: str) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH or one number for both."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and int(part) > 0 for part in parts):
        return int(parts[0]), int(parts[-1])
    raise BadInput(f"{option} {text}", "HEIGHTxWIDTH in pixels", "write for example 224x224")


def model_overrides(
    weights: str | None,
    classes: Path | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    resize: int | None,
    crop: str | None,
    interpolation: str | None,
) -> dict[str, Any]:
    """Return the options of `open_model` that were given."""
    given = {
        "weights": weights,
        "classes": classes,
        "input_size": size(input_size, "--input-size"),
        "mean": numbers(mean, "--mean"),
        "std": numbers(std, "--std"),
        "resize": resize,
        "crop": size(crop, "--crop"),
        "interpolation": interpolation,
    }
    return {key: value for key, value in given.items() if value is not None}


def settings_of(**given: Any) -> Settings:
    """Return the settings, with texts of the command line read."""
    given["max_bad"] = share(given["max_bad"], "--max-bad")
    given["keep"] = tuple(given.get("keep") or ())
    if "noise" in given:
        given["noise"] = noise_setting(given["noise"])
    return Settings(**given)
