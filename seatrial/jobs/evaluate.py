"""Evaluate one model as it is: accuracy, latency and noise on one target, nothing quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.catalogue import make
from seatrial.errors import BadInput
from seatrial.jobs.measured import Cells, Metric, variant_data
from seatrial.jobs.planned import ask, plans
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Samples, open_subject
from seatrial.jobs.variants import SIMULATION, OpenVariants, Variant, build_artefact, time_variants, usable_target
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    out: str | Path | None = None,
    metric: Metric | None = None,
    settings: Settings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return one variant of a trial's JSON for a model that is not changed: accuracy, latency and noise.

    The target is torch unless `settings.target` names another; a deployed file runs on the first runtime that can open
    it. With `out` the store stays there and a later call resumes; without, it is thrown away. Raises BadInput.
    """
    settings = replace(settings or Settings(noise="none"), **options)
    subject = open_subject(model, data, settings, overrides=overrides, calibrate=False, progress=progress)
    with tempfile.TemporaryDirectory(prefix="seatrial-") as scratch:
        folder = Path(out).resolve() if out is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        variant = _variant(subject.model, folder / "models", settings)
        store = Store(folder / "store")
        clean_plan, noise_plan = plans(subject, settings, isinstance(subject.model, Model))
        opener = OpenVariants((variant,), settings.used_threads)
        for plan in dict.fromkeys((clean_plan, noise_plan)):
            ask(opener, plan, store, settings, progress)
        timing = time_variants([variant], settings.used_threads).get(variant.label)
        clean, noisy = Cells.of(store, clean_plan, [variant]), Cells.of(store, noise_plan, [variant])
        specs = [group.spec for group in noise_plan.groups if group.spec is not None]
        return variant_data(variant, subject.model.name, clean, noisy, specs, timing, metric, None)


def _variant(model: Model | ArtefactModel, folder: Path, settings: Settings) -> Variant:
    if isinstance(model, ArtefactModel):
        return build_artefact(model, settings.target).variants[0]
    graph = fold_batch_norm(model.graph)
    name = SIMULATION if settings.target == "auto" else settings.target
    target = usable_target(name)
    whole = make("target", SIMULATION).compile(graph, folder / "float-torch", bits="float32")
    artefact = whole if name == SIMULATION else target.compile(graph, folder / f"float-{name}", bits="float32")
    return Variant("float", name, artefact, whole)


def clean_records(reference: str | Path | nn.Module, evaluation: Samples, settings: Settings) -> pa.Table | None:
    """Return the records of a float model on given samples, for agreement with a deployed file."""
    quiet = replace(settings, noise="none", limit=None, calibration=None, target="auto")
    subject = open_subject(reference, evaluation, quiet, calibrate=False)
    if not isinstance(subject.model, Model):
        raise BadInput(f"--reference {reference}", "the float original, not a deployed file", "name the network")
    with tempfile.TemporaryDirectory(prefix="seatrial-") as scratch:
        variant = _variant(subject.model, Path(scratch) / "models", quiet)
        store = Store(Path(scratch) / "store")
        plan: Plan = plans(subject, quiet, True)[0]
        sweep(OpenVariants((variant,), settings.used_threads), plan, store)
        return Cells.of(store, plan, [variant]).records(variant.label)
