"""The questions of a job: clean data over all samples, noises over some of them."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from seatrial.bench.plan import Plan
from seatrial.data.decode import library_builds
from seatrial.data.draw import limit
from seatrial.jobs.noises import noise_plan
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject


def plans(subject: Subject, settings: Settings, gradients: bool) -> tuple[Plan, Plan]:
    """Return the plan of clean data over all samples and that of the noises, one plan where the samples are equal."""
    installed = ("torch", "numpy", "onnxruntime", "openvino", "ai-edge-litert")
    libraries = {**library_builds(), **{name: _version(name) for name in installed}}
    rows = noise_plan(settings.noise, gradients=gradients)
    wanted = settings.noise_samples
    plan = Plan(
        model=subject.model.name,
        dataset=subject.evaluation,
        pipeline=subject.pipeline,
        task=subject.task,
        seed=settings.seed,
        batch=settings.batch,
        threads=settings.used_threads,
        libraries=libraries,
        cache_gb=settings.cache_gb,
    )
    if not rows:
        return plan, plan
    if wanted is None or wanted >= len(subject.evaluation):
        both = replace(plan, noises=rows)
        return both, both
    fewer = limit(subject.evaluation, wanted, seed=settings.seed)
    return plan, replace(plan, dataset=fewer, noises=rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # that runtime is not installed, so nothing depends on it
        return "absent"
