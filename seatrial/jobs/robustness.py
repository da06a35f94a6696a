"""Attacks, corruptions and system noise under one protocol, for float, quantized and deployed models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from seatrial.bench.cache import damage
from seatrial.bench.plan import Plan
from seatrial.bench.store import Entry, Store
from seatrial.catalogue import entries
from seatrial.core.cell import digest, question
from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.deploy.machine import this_machine
from seatrial.errors import BadInput
from seatrial.jobs.chaining import chain_plan, missing_steps, single_noises
from seatrial.jobs.measured import Cells
from seatrial.jobs.noises import QUICK_QUERIES, listed, parse_noise, profile_texts, with_checks
from seatrial.jobs.pictures import example_pictures
from seatrial.jobs.planned import ask, clean_plan, noisy_plan
from seatrial.jobs.result import write_text
from seatrial.jobs.robust_cells import cell_data
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject, open_subject, told_apart
from seatrial.jobs.variants import (
    SIMULATION,
    OpenVariants,
    Variant,
    artefact_targets,
    build_artefact,
    build_for_targets,
    usable_target,
    wanted_targets,
)
from seatrial.metrics.masking import masking_findings
from seatrial.metrics.summary import summarize
from seatrial.metrics.systematic import drop
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model, is_artefact
from seatrial.noise.ball import budget
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.report.robustness_page import render_robustness

QUICK_SAMPLES = 256
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Asked:
    """Noises as texts, and how many samples the attacks get (None: all)."""

    attacks: tuple[str, ...]
    corruptions: tuple[str, ...]
    system: tuple[str, ...]
    attack_samples: int | None = None


def asked(
    profile: str = "quick",
    *,
    attacks: str | None = None,
    corruptions: str | None = None,
    system: str | None = None,
    attack_samples: int | None = None,
    gradients: bool = True,
) -> Asked:
    """Return what a profile asks, each family replaced where a list is given; raises BadInput for unknown names.

    Attacks that climb gradients come with their checks (see `with_checks`). The quick profile attacks 256 samples.
    """
    if attack_samples is not None and attack_samples < 1:
        raise BadInput(f"--attack-limit {attack_samples}", "at least 1", "give a larger number, or --attacks none")
    quick = profile == "quick"

    def chosen(family: str, given: str | None) -> tuple[str, ...]:
        texts = profile_texts(profile, family, gradients=gradients) if given is None else listed(given, family)
        found = dict[NoiseSpec, str]()
        for text in texts:
            spec, _ = parse_noise(text)
            if found.setdefault(spec, text) != text:
                raise BadInput(f"'{found[spec]}' and '{text}'", "one number of queries", "leave one of them out")
        return tuple(found.values())

    hostile = with_checks(chosen("attack", attacks), queries=QUICK_QUERIES if quick else None)
    natural, odd = chosen("corruption", corruptions), chosen("system", system)
    return Asked(hostile, natural, odd, QUICK_SAMPLES if quick and attack_samples is None else attack_samples)


def robustness(
    models: str | Path | nn.Module | Sequence[str | Path | nn.Module],
    data: str | Path | Iterable[Any] | None = None,
    *,
    profile: str = "quick",
    attacks: str | None = None,
    corruptions: str | None = None,
    system: str | None = None,
    attack_samples: int | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Tell | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return how each model, its quantized variant and its deployed files hold under the three families of noise.

    models: one or more, as on the command line, or eager modules; a float model is quantized to `settings.bits`
    ("float": not at all) and deployed on the targets of `settings.target` ("auto": ONNX Runtime; several with commas);
    a deployed file runs as it is, on the samples that networks beside it are judged on. profile: `quick`, `robustmq`,
    `sysnoise`, `full`; the lists replace a family of it. Writes the store, `report.html` and `robustness.json` to
    `out`; the same call goes on where a stopped one was.

    Raises BadInput with what to do, before anything is computed: unknown names, a model twice, attacks that no model of
    the run can be put through, budgets that hold every picture, targets that are not there, bad data.
    """
    settings = replace(settings or Settings(), **options)
    several = [models] if isinstance(models, (str, Path, nn.Module)) else list(models)
    if not several:
        raise BadInput("no model", "at least one", "name a model")
    opened = told_apart(
        [
            open_subject(
                model,
                data,
                settings,
                overrides=dict(overrides or {}),
                calibrate=settings.bits != "float",
                held_out=not all(is_artefact(other) for other in several),
                progress=progress,
            )
            for model in several
        ]
    )
    gradients = any(isinstance(subject.model, Model) for subject in opened)
    wanted = asked(
        profile,
        attacks=attacks,
        corruptions=corruptions,
        system=system,
        attack_samples=attack_samples,
        gradients=gradients,
    )
    if attacks is not None and not gradients:
        _refuse_gradients(wanted.attacks, opened)
    _check(opened, wanted, settings)
    folder = Path(out) if out is not None else Path(f"robustness-{_question(opened, wanted, settings)}")
    folder = folder.resolve()
    store = Store(folder / "store")
    cells: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    masked: list[dict[str, Any]] = []
    warnings: list[str] = []
    extras: dict[str, Any] = {"pictures": []}
    for subject in opened:
        found = _one(subject, wanted, store, folder / "models" / subject.model.digest[:12], settings, progress)
        cells += found.cells
        summary += found.summary
        masked += found.masking
        warnings += found.warnings
        extras["pictures"] = extras["pictures"] or found.pictures
    first = opened[0]
    samples = len(first.evaluation)
    attacked = min(wanted.attack_samples or samples, samples) if wanted.attacks else 0
    result: dict[str, Any] = {
        "profile": profile,
        "models": [subject.model_data for subject in opened],
        "data": {**first.data_data, "n_attacks": attacked},
        "machine": asdict(this_machine(settings.used_threads)),
        "seed": settings.seed,
        "cells": cells,
        "summary": summary,
        "masking": masked,
        "warnings": list(dict.fromkeys([*warnings, *damage(store.folder / "cache")])),
        "store": str(store.folder),
        "report": str(folder / "report.html"),
    }
    result = json.loads(json.dumps(result, allow_nan=False))
    write_text(folder / "robustness.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "report.html", render_robustness(result, extras))
    return result


@dataclass(frozen=True)
class _Found:
    cells: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    masking: list[dict[str, Any]]
    warnings: list[str]
    pictures: list[dict[str, Any]]


def _one(
    subject: Subject, wanted: Asked, store: Store, folder: Path, settings: Settings, progress: Tell | None
) -> _Found:
    """Ask everything of one model and its variants."""

    if isinstance(subject.model, ArtefactModel):
        built = build_artefact(subject.model, _runtimes(settings))
        variants, warnings = built.variants, list(built.warnings)
    else:
        graph = fold_batch_norm(subject.model.graph)
        variants, warnings = build_for_targets(graph, subject.calibration_batches, folder, settings, progress)
    opener = OpenVariants(variants, settings.used_threads)

    def ask_some(some: tuple[Variant, ...], plan: Plan) -> None:
        ask(replace(opener, variants=some), plan, store, settings, progress)  # keeps the graphs that were read

    base = clean_plan(subject, settings)
    natural = noisy_plan(base, tuple(parse_noise(text) for text in (*wanted.corruptions, *wanted.system)), None)
    hostile = noisy_plan(base, tuple(parse_noise(text) for text in wanted.attacks), wanted.attack_samples)
    plans = [natural, hostile] if wanted.attacks else [natural]
    for plan in plans:
        ask_some(variants, plan)
    found = [Cells.of(store, plan, variants) for plan in plans]
    chains = [_chain(found[0], variant.label, base) for variant in variants]
    for variant, plan in zip(variants, chains):
        if plan.noises:
            ask_some((variant,), plan)
    cells: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    masking: list[dict[str, Any]] = []
    for variant, chain in zip(variants, chains):
        known: dict[NoiseSpec | None, Entry] = {}
        for plan, answered in zip(plans, found):
            known |= {spec: entry for (label, spec), entry in answered.found.items() if label == variant.label}
            rng = generator(settings.seed, "robustness", variant.label)
            cells += [
                cell_data(subject.model.name, variant, group.spec, answered, (3, *subject.pipeline.crop_px), rng=rng)
                for group in plan.groups
                if group.spec is not None
            ]
        steps = Cells.of(store, chain, [variant]) if chain.noises else None
        warnings += missing_steps(steps, variant.label, chain) if steps is not None else []
        rng = generator(settings.seed, "summary", variant.label)
        clean = found[0].records(variant.label)
        if clean is None:
            continue
        tables = {spec: entry.table for spec, entry in known.items() if entry.status == "done"}
        still = [spec for spec, entry in known.items() if entry.status == "no-noise"]
        tables |= dict.fromkeys(still, clean)  # what changes nothing answers as before
        tables[None] = clean
        links = [] if steps is None else [(s, steps.records(variant.label, s)) for s, _ in chain.noises]
        head = {"model": subject.model.name, "variant": variant.name, "target": variant.target}
        summary.append({**head, **summarize(tables, chain=[(s, t) for s, t in links if t is not None], rng=rng)})
        masking += [{**head, **finding} for finding in masking_findings(tables)]
    pictures = _pictures(plans, opener)
    return _Found(cells, summary, masking, [*subject.warnings, *warnings], pictures)


def _chain(answered: Cells, label: str, base: Plan) -> Plan:
    clean = answered.records(label)
    if clean is None:
        return base
    return chain_plan({spec: drop(clean, table) for spec, table in single_noises(answered, label).items()}, base)


def _pictures(plans: Sequence[Plan], opener: OpenVariants) -> list[dict[str, Any]]:
    """Return what each noise does to the first sample of the largest plan, and what the first variant answers."""
    subjects = replace(opener, variants=opener.variants[:1])()
    try:
        shown = [row for plan in plans for row in example_pictures(plan, subjects)]
    finally:
        for subject in subjects:
            subject.close()
    clean = [row for row in shown if row["noise"] is None][:1]
    return clean + [row for row in shown if row["noise"] is not None]


def _check(opened: Sequence[Subject], wanted: Asked, settings: Settings) -> None:
    """Raise BadInput for what would end the run in its middle: targets, and budgets for the size of the pictures."""
    for subject in opened:
        if isinstance(subject.model, ArtefactModel):
            artefact_targets(subject.model, _runtimes(settings))
        else:
            for name in wanted_targets(settings):
                usable_target(name)
        for text in wanted.attacks:
            spec, _ = parse_noise(text)
            budget(str(spec.norm), str(spec.severity), (3, *subject.pipeline.crop_px))


def _runtimes(settings: Settings) -> str:
    """Return what `settings.target` wishes for a deployed file, which no simulation opens."""
    return "auto" if settings.target == SIMULATION else settings.target


def _refuse_gradients(texts: Iterable[str], opened: Sequence[Subject]) -> None:
    known = entries("attack")
    needing = sorted({name for name in (text.partition(":")[0] for text in texts) if known[name].needs == "gradients"})
    if needing:
        working = ", ".join(name for name, entry in known.items() if entry.needs != "gradients")
        raise BadInput(
            f"{', '.join(needing)} on {', '.join(s.model.name for s in opened)}: a deployed file gives no gradients",
            f"attacks on scores or labels: {working}",
            "ask for those, or add the float original to the run",
        )


def _question(opened: Sequence[Subject], wanted: Asked, settings: Settings) -> str:
    how = ("jobs", "ray", "cache_gb", "retry_failed", "noise", "noise_limit")
    parts = {key: value for key, value in asdict(settings).items() if key not in how}
    about = [[s.model.digest, s.evaluation.digest, asdict(s.pipeline)] for s in opened]
    return digest(question(about=about, noises=asdict(wanted), **parts))[:8]
