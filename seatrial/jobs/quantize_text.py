"""Quantize one text model for one target, judged on texts: files that run there, and what was lost where."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seatrial.bench.texts import text_records
from seatrial.catalogue import make
from seatrial.core.chance import generator
from seatrial.core.target import Target, Timing
from seatrial.deploy.machine import this_machine
from seatrial.deploy.stopwatch import Stopwatch
from seatrial.deploy.stopwatch import Subject as Timed
from seatrial.jobs.before_after import before_and_after
from seatrial.jobs.deployable_text import write_text_deployable
from seatrial.jobs.measured import Metric, score_name
from seatrial.jobs.result import latency_data, write_text
from seatrial.jobs.settings import Settings
from seatrial.jobs.text_figures import TextFigure
from seatrial.jobs.text_settings import CALIBRATION_TEXTS, TextSettings
from seatrial.jobs.text_subject import TextSubject, open_text_subject
from seatrial.jobs.variants import SIMULATION, Built, Variant, build, fastest, installed_targets, usable_target
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.report.quantize_page import write_quantize

Progress = Callable[[int, int, str], None]


def quantize_text(
    model: str,
    data: str | Path | None,
    *,
    out: str | Path = "quantized",
    metric: Metric | None = None,
    settings: Settings | None = None,
    texts: TextSettings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize `hf:REPO_OR_FOLDER` for `settings.target`; write model, recipe, page, tokenizer and script to `out`.

    Returns the JSON of `seatrial quantize` for text models (documented in docs/json.md). Latency is that of one row as
    long as the longest of the evaluation. Raises BadInput as `open_text_subject` does.
    """
    start = time.monotonic()
    settings = settings or Settings(calibration_samples=CALIBRATION_TEXTS)
    subject = open_text_subject(model, data, settings, texts or TextSettings(), overrides=overrides)
    folder = Path(out).resolve()
    graph = fold_batch_norm(subject.model.graph)
    batches = subject.calibration_batches()
    chosen = settings.target
    targets = installed_targets() if chosen == "auto" else {chosen: usable_target(chosen)}
    found: dict[str, Built] = {}
    for name, target in targets.items():
        if progress is not None:
            progress(0, 0, f"quantizing for {name}")
        found[name] = build(graph, target, batches, folder / "models", settings)
    timings = _timings(found, targets, subject.longest, settings.used_threads)
    name = next(iter(found)) if len(found) == 1 else fastest(found, timings, settings.bits)
    built = found[name]
    records = {variant.label: _records(variant, subject, settings, progress) for variant in built.variants}
    stored = {label: folder / "records" / f"{label}.parquet" for label in records}
    for label, file in stored.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(records[label], file)
    rows = [_row(variant, subject, records, timings, settings, metric) for variant in built.variants]
    variant, row = next((v, r) for v, r in zip(built.variants, rows) if (v.name, v.target) == (settings.bits, name))
    files = list(variant.artefact.files)
    if variant.artefact.format == "onnx":
        files = write_text_deployable(folder, variant.artefact, name, subject)
    assert built.quantized is not None, "build quantizes"
    files += built.quantized.recipe.save(folder / "recipe")
    lost = [f"the {r['metric']} of {r['name']}@{r['target']} is no finite number" for r in rows if r["value"] is None]
    result = {
        "model": {"name": subject.model.name, "source": subject.model.source, "digest": subject.model.digest},
        "machine": asdict(this_machine(settings.used_threads)),
        "target": name,
        "method": settings.method,
        "task": subject.task_name,
        "data": subject.data_data,
        "calibration": subject.calibration_note,
        **{key: row[key] for key in ("bits", "size_bytes", "latency_ms")},
        "latency_tokens": None if "simulated" in variant.artefact.settings else subject.longest,
        **{key: row[key] for key in ("metric", "value", "low", "high")},
        **{key: row[key] for key in ("agreement", "agreement_simulated", "ratio", "difference")},
        "variants": rows,
        **before_and_after(graph, batches, targets[name].placement, settings, built.quantized),
        "files": [str(file) for file in files],
        "report": str(folder / "quantize.html"),
        "records": {label: str(file) for label, file in stored.items()},
        "seconds": time.monotonic() - start,
        "warnings": [*subject.warnings, *built.warnings, *lost],
    }
    write_quantize(result, folder / "quantize.html")
    write_text(folder / "quantize.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return json.loads(json.dumps(result))


def _timings(found: Mapping[str, Built], targets: Mapping[str, Target], length: int, threads: int) -> dict[str, Timing]:
    """Return what the stopwatch saw at batch 1 of each deployed variant, alternated; modeled chips tell their own."""
    deployed = [v for built in found.values() for v in built.variants if v.target != SIMULATION]
    modeled = [v for v in deployed if "simulated" in v.artefact.settings]
    timed = [v for v in deployed if v not in modeled]
    rows = [replace(v.artefact, settings={**v.artefact.settings, "length": str(length)}) for v in timed]
    seen = Stopwatch().measure(
        [Timed(v.target, artefact) for v, artefact in zip(timed, rows)], threads=threads, batches=(1,)
    )
    told = [targets[v.target].time([v.artefact], threads=threads, batches=(1,))[0] for v in modeled]
    return {variant.label: timing for variant, timing in zip([*timed, *modeled], [*seen, *told], strict=True)}


def _records(variant: Variant, subject: TextSubject, settings: Settings, progress: Progress | None) -> pa.Table:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, variant.label)

    target: Target = make("target", variant.target)
    predictor = target.open(variant.artefact, threads=settings.used_threads)
    try:
        batch, pad = subject.batch(settings.batch), subject.tokenizer.pad
        found = text_records(predictor, subject.task, subject.evaluation, batch=batch, pad=pad, progress=tell)
    finally:
        predictor.close()
    return found.combine_chunks()


def _row(
    variant: Variant,
    subject: TextSubject,
    records: Mapping[str, pa.Table],
    timings: Mapping[str, Timing],
    settings: Settings,
    metric: Metric | None,
) -> dict[str, Any]:
    """Return one variant of the JSON; figures that do not exist are None."""
    figure = TextFigure.of(subject.task_name)
    own, whole = records[variant.label], records[f"float@{SIMULATION}"]
    simulated = records.get(f"{variant.name}@{SIMULATION}")
    rng = generator(settings.seed, "quantize-text", variant.label)
    return {
        "name": variant.name,
        "target": variant.target,
        "bits": variant.artefact.bits,
        "size_bytes": variant.artefact.size_bytes,
        "latency_ms": latency_data(timings.get(variant.label)),
        "metric": figure.name if metric is None else score_name(metric),
        **figure.row(own, rng, metric),
        "agreement": figure.agreement(own, whole),
        "agreement_simulated": None if simulated is None else figure.agreement(own, simulated),
        **figure.against(whole, own, rng),
    }
