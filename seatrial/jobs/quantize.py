"""Quantize one model for one target: files that run there, with what was measured and what was lost where."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from seatrial.bench.store import Store
from seatrial.deploy.machine import this_machine
from seatrial.errors import BadInput
from seatrial.jobs.before_after import before_and_after
from seatrial.jobs.deployable import write_deployable
from seatrial.jobs.measured import Cells, Metric, variant_data
from seatrial.jobs.ohq import OHQ, quantize_ohq
from seatrial.jobs.planned import ask, plans
from seatrial.jobs.quantize_text import quantize_text
from seatrial.jobs.result import write_text
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import open_subject
from seatrial.jobs.text_settings import CALIBRATION_TEXTS, TextSettings
from seatrial.jobs.variants import (
    SIMULATION,
    OpenVariants,
    build,
    fastest,
    installed_targets,
    time_variants,
    usable_target,
)
from seatrial.models.opened import Model
from seatrial.models.text_head import text_head
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.report.quantize_page import write_quantize


def quantize(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    out: str | Path = "quantized",
    metric: Metric | None = None,
    settings: Settings | None = None,
    texts: TextSettings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize a network for `settings.target`; write model, recipe, page, preprocessing, labels and script to `out`.

    Returns the JSON of `seatrial quantize` (documented in docs/json.md). The model itself is left as it was. Options
    are the fields of `Settings` and, for a text model (see `quantize_text`), of `TextSettings`. With `method="ohq"`
    they are those of `quantize_ohq`. Raises BadInput for deployed files, unknown names and data that cannot be used.
    """
    of_texts = {part.name: options.pop(part.name) for part in fields(TextSettings) if part.name in options}
    texts = replace(texts or TextSettings(), **of_texts)
    if isinstance(model, str) and text_head(model) is not None:
        return _quantize_text(model, data, texts, options, out, metric, settings, overrides, progress)
    if texts != TextSettings():
        raise BadInput(f"an option of text models for '{model}'", "a text model, hf:REPO_OR_FOLDER", "leave it out")
    if options.get("method") == OHQ:
        del options["method"]
        given = {"out": out, "metric": metric, "settings": settings, "overrides": overrides, "progress": progress}
        return quantize_ohq(model, data, **given, **options)
    start = time.monotonic()
    settings = replace(settings or Settings(), **{"noise": "none", **options})
    subject = open_subject(model, data, settings, overrides=overrides, progress=progress)
    if not isinstance(subject.model, Model):
        raise BadInput(f"the deployed file '{subject.model.name}'", "a network to quantize", "pass the float original")
    folder = Path(out).resolve()
    store = Store(folder / "store")
    graph = fold_batch_norm(subject.model.graph)
    batches = subject.calibration_batches()
    chosen = settings.target
    targets = installed_targets() if chosen == "auto" else {chosen: usable_target(chosen)}
    found = {name: build(graph, target, batches, folder / "models", settings) for name, target in targets.items()}
    every = list({v.label: v for built in found.values() for v in built.variants}.values())
    timings = time_variants(every, settings.used_threads)
    name = next(iter(found)) if len(found) == 1 else fastest(found, timings, settings.bits)
    built = found[name]
    plan, _ = plans(subject, settings, True)
    ask(OpenVariants(built.variants, settings.used_threads), plan, store, settings, progress)
    clean = Cells.of(store, plan, built.variants)
    variant = next(v for v in built.variants if v.name == settings.bits and v.target == name)
    reference = clean.records(f"float@{SIMULATION}")
    row = variant_data(variant, subject.model.name, clean, clean, (), timings.get(variant.label), metric, reference)
    files = list(variant.artefact.files)
    if variant.artefact.format == "onnx":
        files = write_deployable(folder, variant.artefact, name, subject)
    assert built.quantized is not None, "build quantizes"
    files += built.quantized.recipe.save(folder / "recipe")
    result = {
        "model": {"name": subject.model.name, "source": subject.model.source, "digest": subject.model.digest},
        "machine": asdict(this_machine(settings.used_threads)),
        "target": name,
        "method": settings.method,
        **{key: row[key] for key in ("bits", "size_bytes", "latency_ms", "metric", "value")},
        **{key: row[key] for key in ("agreement", "agreement_simulated")},
        **before_and_after(graph, batches, targets[name].placement, settings, built.quantized),
        "files": [str(file) for file in files],
        "report": str(folder / "quantize.html"),
        "seconds": time.monotonic() - start,
        "warnings": [*subject.warnings, *built.warnings],
    }
    write_quantize(result, folder / "quantize.html")
    write_text(folder / "quantize.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return json.loads(json.dumps(result))


def _quantize_text(
    model: str,
    data: Any,
    texts: TextSettings,
    options: dict[str, Any],
    out: str | Path,
    metric: Metric | None,
    settings: Settings | None,
    overrides: dict[str, Any] | None,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Any]:
    if options.get("method") == OHQ:
        raise BadInput(f"--method {OHQ} for the text model '{model}'", "a quantizer", "see `seatrial list quantizer`")
    if not isinstance(data, str | Path | None):
        raise BadInput(f"data of type {type(data).__name__} for '{model}'", "a file of texts", "save them as one")
    settings = replace(settings or Settings(calibration_samples=CALIBRATION_TEXTS), **options)
    given = {"out": out, "metric": metric, "settings": settings, "texts": texts}
    return quantize_text(model, data, **given, overrides=overrides, progress=progress)
