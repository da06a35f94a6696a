"""The questions of a job: clean data over all samples, noises over all or some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.bench.worker import OpenSubjects
from seatrial.core.pipeline import Pipeline
from seatrial.core.sample import Dataset
from seatrial.core.task import Task
from seatrial.data.decode import library_builds
from seatrial.data.draw import limit
from seatrial.jobs.noises import Row, noise_plan
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject


def plans(subject: Subject, settings: Settings, gradients: bool) -> tuple[Plan, Plan]:
    """Return the plan of clean data over all samples and that of the noises, one plan where the samples are equal."""
    rows = noise_plan(settings.noise, gradients=gradients)
    plan = clean_plan(subject, settings)
    return (plan, noisy_plan(plan, rows, settings.noise_samples)) if rows else (plan, plan)


def clean_plan(subject: Subject, settings: Settings) -> Plan:
    """Return the plan that asks clean data alone."""
    return plan_of(subject.model.name, subject.evaluation, subject.pipeline, subject.task, settings)


def plan_of(model: str, dataset: Dataset, pipeline: Pipeline, task: Task, settings: Settings) -> Plan:
    """Return the plan that asks clean data alone, of any task."""
    installed = ("torch", "numpy", "onnxruntime", "openvino", "ai-edge-litert")
    return Plan(
        model=model,
        dataset=dataset,
        pipeline=pipeline,
        task=task,
        seed=settings.seed,
        batch=settings.batch,
        threads=settings.used_threads,
        libraries={**library_builds(), **{name: _version(name) for name in installed}},
        cache_gb=settings.cache_gb,
    )


def noisy_plan(plan: Plan, rows: tuple[Row, ...], samples: int | None) -> Plan:
    """Return the plan with these noises, on so many of its samples (None: all), drawn balanced over classes."""
    if samples is None or samples >= len(plan.dataset):
        return replace(plan, noises=rows)
    fewer = limit(plan.dataset, samples, seed=plan.seed)  # pyright: ignore[reportArgumentType]
    return replace(plan, dataset=fewer, noises=rows)


def ask(
    opener: OpenSubjects,
    plan: Plan,
    store: Store,
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Finish the cells of a plan with the processes, or the cluster, that the settings name; as `sweep`."""
    sweep(
        opener,
        plan,
        store,
        jobs=settings.jobs,
        ray_address=settings.ray,
        retry_failed=settings.retry_failed,
        progress=progress,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # that runtime is not installed, so nothing depends on it
        return "absent"
