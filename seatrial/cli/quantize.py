"""`seatrial quantize`: files for a target, uniform or searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seatrial.cli import options as o
from seatrial.errors import BadInput

_SEARCH = "Search (--method ohq)"
OHQ = "ohq"


def quantize(
    model: o.Model,
    data: o.PicturesOrTexts = None,
    weights: o.Weights = None,
    target: o.Target = "auto",
    method: Annotated[
        str,
        typer.Option(help="A quantizer (see `seatrial list`), or ohq: search each operator's precision on this chip."),
    ] = "nearest",
    bits: o.BitsOption = "w8a8",
    ranges: o.Ranges = "default",
    bias_correction: o.BiasCorrection = None,
    equalization: o.Equalization = "depthwise",
    weights_per: Annotated[
        str, typer.Option(help="What a scale of weights covers: tensor, channel or group:N.")
    ] = "channel",
    activations_per: Annotated[
        str, typer.Option(help="What a scale of activations covers: tensor, token or group:N.")
    ] = "tensor",
    keep: o.Keep = None,
    limit: o.Limit = None,
    out: Annotated[Path, typer.Option(help="Folder for the model, recipe and script.")] = Path("quantized"),
    json: o.JsonFile = None,
    quantizer: Annotated[
        str,
        typer.Option(help="The quantizer that plans grids (see `seatrial list quantizer`).", rich_help_panel=_SEARCH),
    ] = "nearest",
    max_drop: Annotated[
        str | None,
        typer.Option(help="Most that the metric may lose against float: 0.01 or 1%.", rich_help_panel=_SEARCH),
    ] = None,
    time_budget: Annotated[
        float, typer.Option(help="Seconds from planning to the last measurement.", rich_help_panel=_SEARCH)
    ] = 300.0,
    search_batch: Annotated[
        int, typer.Option(help="Batch size that the deployed network will have.", rich_help_panel=_SEARCH)
    ] = 1,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds of one call.", rich_help_panel=_SEARCH)
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Most MB of the files.", rich_help_panel=_SEARCH)] = None,
    max_energy_mj: Annotated[
        float | None, typer.Option(help="Most millijoules of one call.", rich_help_panel=_SEARCH)
    ] = None,
    sensitivity: Annotated[
        str, typer.Option(help="mask-guided, or direct: every operator rounded by itself.", rich_help_panel=_SEARCH)
    ] = "mask-guided",
    task: o.Task = None,
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    window: o.Window = None,
    stride: o.Stride = None,
    classes: o.Classes = None,
    calibration: o.Calibration = None,
    calibration_samples: Annotated[
        int | None, typer.Option(help="How many samples to calibrate on; by default 256, 128 of a text model.")
    ] = None,
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
    """Quantize a network for a target and write files that run there.

    Example: seatrial quantize timm:resnet18 --weights resnet18.safetensors --data pictures/ --target openvino

    Example: seatrial quantize timm:deit_tiny_patch16_224 --weights deit.safetensors --data pictures/ --method ohq

    Example: seatrial quantize hf:bert/ --data dev.tsv --text-column text_a --label-column label --target onnxruntime
    """
    from seatrial.cli.screen import OUT, progress_bar, show_gains, show_rows, write_json
    from seatrial.jobs.search_settings import SearchSettings
    from seatrial.jobs.text_settings import CALIBRATION_TEXTS, TextSettings
    from seatrial.models.text_head import text_head

    searched, of_texts = method == OHQ, text_head(model) is not None
    texts = TextSettings(task, text_column, label_column, window, stride)  # pyright: ignore[reportArgumentType]  refused there
    if searched and (of_texts or texts != TextSettings()):
        raise BadInput(f"--method {OHQ} for text", "a quantizer for a text model", "see `seatrial list quantizer`")
    if searched and bits != "w8a8":
        raise BadInput(f"--bits {bits} with --method ohq", "no --bits: the search decides them", "leave it out")
    if calibration_samples is None:
        calibration_samples = CALIBRATION_TEXTS if of_texts else 256
    settings = o.settings_of(
        target=target, method="nearest" if searched else method, bits=bits, ranges=ranges,
        bias_correction=bias_correction, equalization=equalization, keep=keep, limit=limit, calibration=calibration,
        calibration_samples=calibration_samples, max_bad=max_bad, seed=seed, batch=batch, threads=threads,
        weights_per=weights_per, activations_per=activations_per,
    )  # fmt: skip
    wishes = SearchSettings(
        time_budget, search_batch, None if max_drop is None else o.share(max_drop, "--max-drop"), max_latency_ms,
        max_size_mb, max_energy_mj, sensitivity, quantizer,  # pyright: ignore[reportArgumentType]  refused there
    )  # fmt: skip
    if not searched and wishes != SearchSettings():
        raise BadInput(f"a search's option with --method {method}", "--method ohq", "add it, or leave the option out")
    overrides = o.model_overrides(weights, classes, input_size, mean, std, resize, crop, interpolation)
    with progress_bar() as tell:
        found = _run(model, data, out, settings, wishes if searched else None, texts, overrides, tell)
    if searched:
        show_rows("uniform precisions", [_baseline(told) for told in found["baselines"]])
    shown = [_text_variant(told) for told in found["variants"]] if of_texts else [_quantized(found)]
    show_rows(str(found["model"]["name"]), shown)
    show_gains(found)
    OUT.print(f"report: {found['report']}", soft_wrap=True, markup=False)
    for warning in found["warnings"]:
        OUT.print(f"note: {warning}", soft_wrap=True, markup=False)
    OUT.print(f"files: {found['files'][0]} and {len(found['files']) - 1} more", soft_wrap=True, markup=False)
    write_json(found, json)


def _run(
    model: str, data: Any, out: Path, settings: Any, wishes: Any, texts: Any, overrides: Any, tell: Any
) -> dict[str, Any]:
    if wishes is None:
        from seatrial.jobs.quantize import quantize as run

        return run(model, data, out=out, settings=settings, texts=texts, overrides=overrides, progress=tell)
    from seatrial.jobs.ohq import quantize_ohq

    return quantize_ohq(model, data, out=out, settings=settings, wishes=wishes, overrides=overrides, progress=tell)


def _quantized(found: dict[str, Any]) -> dict[str, Any]:
    row = {key: found[key] for key in ("target", "bits", "size_bytes", "value", "agreement", "agreement_simulated")}
    return {**row, "latency_ms": found["latency_ms"]["median"] if found["latency_ms"] else None}


def _text_variant(told: dict[str, Any]) -> dict[str, Any]:
    latency, ratio = told["latency_ms"], told["ratio"]
    return {
        "variant": f"{told['name']}@{told['target']}",
        "size_bytes": told["size_bytes"],
        "latency_ms": latency["median"] if latency else None,
        told["metric"]: told["value"],
        "ratio" if ratio else "agreement": ratio["value"] if ratio else told["agreement"],
    }


def _baseline(told: dict[str, Any]) -> dict[str, Any]:
    ratio = told["ratio_vs_chosen"]
    return {
        "name": told["name"],
        "latency_ms": told["latency_ms"]["median"],
        "times the choice": f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
        "value": told["value"],
        "agreement": told["agreement"],
    }
