"""The main job: quantize for the chip at hand, measure there, and see how every variant holds under noise."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from seatrial.bench.cache import damage
from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.catalogue import NOISE_FAMILIES, entries
from seatrial.core.cell import digest, question
from seatrial.core.graph import Graph
from seatrial.core.target import Latency, Timing
from seatrial.deploy.machine import this_machine
from seatrial.errors import BadInput
from seatrial.jobs.deployable import write_deployable
from seatrial.jobs.evaluate import clean_records
from seatrial.jobs.measured import Cells, Metric, paired, variant_data
from seatrial.jobs.pictures import example_pictures
from seatrial.jobs.planned import ask, plans
from seatrial.jobs.quantized import blamed
from seatrial.jobs.result import TrialResult, write_text
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject, open_subject
from seatrial.jobs.variants import (
    SIMULATION,
    Built,
    OpenVariants,
    Variant,
    build,
    build_artefact,
    fastest,
    installed_targets,
    time_variants,
    usable_target,
)
from seatrial.metrics.limits import check_limit, evaluate_limit, limit_values
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm

_DROP_TO_EXPLAIN = 0.01


def trial(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    out: str | Path | None = None,
    metric: Metric | None = None,
    reference: str | Path | nn.Module | None = None,
    settings: Settings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> TrialResult:
    """Take a trained network through its sea trial and return what was found; the same call resumes a stopped one.

    model, data: as on the command line, or an eager module and an iterable of (input, label). metric: a function from
    the records as a DataFrame (`sample`, `label`, `answer`, `correct`, ...) to a number; top-1 without one.
    reference: the float original of a deployed file, for agreement. options: fields of `Settings` (`target`, `bits`,
    `noise`, `limit`, ...). overrides: options of `open_model`. out: the folder, by default one in the working
    directory named after the question. Writes the store, `report.html`, `trial.json` and a `deploy` folder.

    Raises BadInput with what to do. The model itself is left as it was.
    """
    settings = replace(settings or Settings(), **options)
    subject = open_subject(model, data, settings, overrides=overrides, progress=progress)
    folder = Path(out) if out is not None else Path(f"trial-{_slug(subject.model.name)}-{_question(subject, settings)}")
    folder = folder.resolve()
    store = Store(folder / "store")
    choices = _choices(folder, settings)
    graph = fold_batch_norm(subject.model.graph) if isinstance(subject.model, Model) else None
    built, timings = _built(subject, graph, folder, store, choices, settings, progress)
    write_text(folder / "trial.toml", f"[choices]\ntarget = {json.dumps(built.target)}\n")
    clean_plan, noisy_plan = plans(subject, settings, graph is not None)
    opener = OpenVariants(built.variants, settings.used_threads)
    for plan in dict.fromkeys((clean_plan, noisy_plan)):
        ask(opener, plan, store, settings, progress)
    clean = Cells.of(store, clean_plan, built.variants)
    noisy = Cells.of(store, noisy_plan, built.variants)
    base = clean.records(f"float@{SIMULATION}")
    warnings = [*subject.warnings, *built.warnings]
    if reference is not None:
        base = clean_records(reference, subject.evaluation, settings)
    specs = [group.spec for group in noisy_plan.groups if group.spec is not None]
    shown = [
        variant_data(v, subject.model.name, clean, noisy, specs, timings.get(v.label), metric, base)
        for v in built.variants
    ]
    warnings += _explained(subject, graph, built, shown)
    result: dict[str, Any] = {
        "model": subject.model_data,
        "data": subject.data_data,
        "calibration": {
            "name": subject.calibration_note,
            "n": 0 if subject.calibration is None else len(subject.calibration),
            "seed": settings.seed,
            "digest": None if subject.calibration is None else subject.calibration.digest,
        },
        "machine": asdict(this_machine(settings.used_threads)),
        "variants": shown,
        "warnings": [*warnings, *damage(store.folder / "cache")],
        "store": str(store.folder),
        "report": str(folder / "report.html"),
    }
    extras = _extras(settings, built, clean, noisy_plan, opener)
    found = TrialResult(json.loads(json.dumps(result)), extras, folder)
    found.save(folder / "trial.json")
    found.report()
    _deploy(folder, subject, built)
    return found


def limit_holds(result: TrialResult, expression: str) -> bool:
    """Return whether a limit such as `w8a8.top1 < float.top1 - 0.01` is true of a result."""
    return evaluate_limit(expression, limit_values(result.data))


def check_limits(expression: str) -> None:
    """Raise BadInput for a limit that no trial could answer: its grammar, or a figure that there is not."""
    noises = [entry for family in NOISE_FAMILIES for entry in (family, *entries(family))]
    check_limit(expression, noises)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.") or "model"


def _question(subject: Subject, settings: Settings) -> str:
    asked = asdict(settings)
    for name in ("jobs", "ray", "cache_gb", "retry_failed"):  # how, not what
        del asked[name]
    data = subject.evaluation.digest
    return digest(question(model=subject.model.digest, data=data, pipeline=asdict(subject.pipeline), **asked))[:8]


def _choices(folder: Path, settings: Settings) -> Mapping[str, str]:
    file = folder / "trial.toml"
    if not file.exists():
        return {"target": settings.target}
    try:
        target = tomllib.loads(file.read_text(encoding="utf-8"))["choices"]["target"]
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} that cannot be read ({error})", "[choices] with a target", "remove it") from error
    if settings.target not in ("auto", target):
        raise BadInput(
            f"--target {settings.target} in a folder of a trial on '{target}'", "one target a folder", "choose --out"
        )
    return {"target": str(target)}


def _built(
    subject: Subject,
    graph: Graph | None,
    folder: Path,
    store: Store,
    choices: Mapping[str, str],
    settings: Settings,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Built, dict[str, Timing]]:
    """Build the variants, time them where the store has no timings for these files, and choose the target."""

    def tell(text: str) -> None:
        if progress is not None:
            progress(0, 0, text)

    if graph is None or isinstance(subject.model, ArtefactModel):
        wanted = "auto" if choices["target"] not in ("onnxruntime", "openvino", "litert") else choices["target"]
        built = build_artefact(subject.model, wanted)  # pyright: ignore[reportArgumentType]
        tell("measuring latency")
        return built, _timings(store, built.variants, settings.used_threads)
    batches = subject.calibration_batches()
    if choices["target"] == "auto":
        targets = installed_targets()
    else:
        targets = {choices["target"]: usable_target(choices["target"])}
    found = {}
    for name, target in targets.items():
        tell(f"quantizing for {name}")
        found[name] = build(graph, target, batches, folder / "models", settings)
    tell("measuring latency")
    every = list({v.label: v for b in found.values() for v in b.variants}.values())
    timings = _timings(store, every, settings.used_threads)
    name = next(iter(found)) if len(found) == 1 else fastest(found, timings, settings.bits)
    built = found[name]
    if len(found) > 1:
        times = {n: timings[f"{settings.bits}@{n}"].latency[0].median for n in found}
        said = ", ".join(f"{n} {t:.2f} ms" for n, t in times.items())
        built = replace(built, warnings=(*built.warnings, f"target auto chose {name} by measurement: {said}"))
    return built, timings


def _timings(store: Store, variants: Iterable[Variant], threads: int) -> dict[str, Timing]:
    kept = store.load_timings()
    keys = {v.label: digest(v.digest, str(threads), asdict(this_machine(threads))["cpu"]) for v in variants}
    timed = [v for v in variants if v.target != SIMULATION or v.name == "float"]
    if not all(keys[v.label] in kept for v in timed):
        seen = time_variants(timed, threads)
        kept = {**kept, **{keys[label]: asdict(timing) for label, timing in seen.items()}}
        store.save_timings(kept)
    return {v.label: _timing(kept[keys[v.label]]) for v in timed}


def _timing(data: Mapping[str, Any]) -> Timing:
    latency = tuple(Latency(**entry) for entry in data["latency"])
    return Timing(latency, data["throughput_per_s"], data["load_ms"], data["peak_memory_bytes"])


def _explained(subject: Subject, graph: Graph | None, built: Built, shown: list[dict[str, Any]]) -> list[str]:
    """Say which site to blame where the simulated accuracy falls by more than a point."""
    by_label = {f"{row['name']}@{row['target']}": row for row in shown}
    quantized = [v for v in built.variants if v.target == SIMULATION and v.name != "float"]
    if graph is None or built.quantized is None or not quantized:
        return []
    before, after = by_label[f"float@{SIMULATION}"]["top1"], by_label[quantized[0].label]["top1"]
    if before is None or after is None or before - after <= _DROP_TO_EXPLAIN:
        return []
    said = blamed(graph, built.quantized.recipe, subject.calibration_batches()[0])
    return [f"accuracy falls by {(before - after) * 100:.1f} points; {said}"] if said else []


def _extras(settings: Settings, built: Built, clean: Cells, plan: Plan, opener: OpenVariants) -> dict[str, Any]:
    subjects = opener()
    chosen = [s for s in subjects if s.target != SIMULATION] or subjects
    try:
        pictures = example_pictures(plan, [s for s in subjects if s.name == "float"][:1] + chosen[-1:])
    finally:
        for subject in subjects:
            subject.close()
    fallbacks = [
        f"{label}, {entry.cell.noise.name}: {entry.status}, {entry.reason}"
        for (label, noise), entry in clean.found.items()
        if noise is not None and entry.cell.noise is not None and entry.status == "failed"
    ]
    return {
        "settings": {key: value for key, value in asdict(settings).items() if value is not None},
        "fallbacks": [*built.warnings, *fallbacks],
        "sites": list(built.quantized.sites) if built.quantized is not None else [],
        "pictures": pictures,
        "paired": paired(clean, built.variants, settings.seed),
    }


def _deploy(folder: Path, subject: Subject, built: Built) -> None:
    deployed = [v for v in built.variants if v.target != SIMULATION and v.artefact.format == "onnx"]
    if deployed:
        last = deployed[-1]
        write_deployable(folder / "deploy", last.artefact, last.target, subject)
