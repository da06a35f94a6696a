"""A larger sweep: every model on every target by every method at every precision, as a TOML file says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

from seatrial.bench.toml_sweep import SweepFile, read_sweep
from seatrial.jobs.result import TrialResult
from seatrial.jobs.settings import Settings
from seatrial.jobs.trial import trial


def run_sweep(
    path: Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[TrialResult]:
    """Run the trials that a sweep file describes, each in a folder of its own; finished cells are not asked again.

    Raises BadInput for a file that cannot be read, with the field and the nearest match.
    """
    file = read_sweep(path)
    folder = Path(file.out) if file.out is not None else path.with_suffix("")
    results = []
    for model, target, method, bits in product(file.models, file.targets, file.methods, file.bits):
        settings = _settings(file, target, method, bits, jobs, ray)
        name = "-".join(part for part in (Path(model.name.replace(":", "-")).stem, target, method, bits) if part)
        overrides = {"weights": model.weights, "classes": file.classes}
        given = {key: value for key, value in overrides.items() if value is not None}
        results.append(
            trial(model.name, file.data, out=folder / name, settings=settings, overrides=given, progress=progress)
        )
    return results


def _settings(file: SweepFile, target: str, method: str, bits: str, jobs: int | None, ray: str | None) -> Settings:
    noise = file.noise if isinstance(file.noise, str) else tuple(file.noise)
    return Settings(
        target=target,
        method=method,
        bits=bits,
        keep=tuple(file.keep),
        noise=noise,
        limit=file.limit,
        calibration=file.calibration,
        calibration_samples=file.calibration_samples,
        seed=file.seed,
        batch=file.batch,
        threads=file.threads,
        jobs=jobs or file.jobs,
        ray=ray,
        cache_gb=file.cache_gb,
    )
