"""What a sweep costs beside decoding, noise and forward passes, and what a second Ray worker brings.

    python benchmarks/sweep.py [overhead] [ray] [--shared FOLDER] [--pictures 800] [--rounds 3]

SqueezeNet 1.1 in float on ONNX Runtime with one thread, on pictures of ImageNet validation. `overhead` is the wall time
of the sweep less what decoding, corruptions and forward passes took in it. `ray` runs a sweep on a Ray cluster of one
and of two CPUs in alternation, one thread a worker, so it needs two idle cores. Exits with 1 where the overhead is over
5 %, or two workers are less than 1.6 times as fast. Needs the development data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Self

import numpy as np

from seatrial.bench import group, pictures
from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.catalogue import make
from seatrial.core.noise import Corruption
from seatrial.deploy.machine import this_machine
from seatrial.jobs.noises import parse_noise
from seatrial.jobs.planned import clean_plan
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import open_subject
from seatrial.jobs.variants import OpenVariants, Variant
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NOISES = ("gaussian_noise:3", "jpeg_compression:3", "decoder:pyav")
MANY = (
    *NOISES,
    "color:nv12-exact",
    *(f"{name}:3" for name in ("contrast", "brightness", "defocus_blur", "fog", "pixelate", "snow", "frost")),
)
MOST_OVERHEAD, LEAST_GAIN = 0.05, 1.6


def prepared(shared: Path, count: int, folder: Path) -> tuple[OpenVariants, Plan]:
    """Return what opens the network, and the plan of clean data."""
    settings = Settings(threads=1, limit=count)
    path = shared / "models" / "squeezenet1_1_imagenet.pt2"
    subject = open_subject(path, shared / "imagenet_val_800", settings, calibrate=False)
    assert isinstance(subject.model, Model)
    file = make("target", "onnxruntime").compile(fold_batch_norm(subject.model.graph), folder / "float", bits="float32")
    return OpenVariants((Variant("float", "onnxruntime", file),), 1), clean_plan(subject, settings)


class Timed:
    """Seconds that some functions took, on whatever thread, while the block ran."""

    def __init__(self, *places: tuple[Any, str]) -> None:
        self._places, self.seconds = places, 0.0

    def __enter__(self) -> Self:
        self._before = [getattr(owner, name) for owner, name in self._places]
        for (owner, name), function in zip(self._places, self._before, strict=True):
            setattr(owner, name, self._wrapped(function))
        return self

    def __exit__(self, *_: object) -> None:
        for (owner, name), function in zip(self._places, self._before, strict=True):
            setattr(owner, name, function)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*given: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*given, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def overhead(opener: OpenVariants, plan: Plan, rounds: int) -> bool:
    plan = replace(plan, noises=tuple(parse_noise(text) for text in NOISES))
    corruptions = [type(one.noise) for one in plan.groups if isinstance(one.noise, Corruption)]
    (opened,) = opener()
    forward = type(opened.predictor)
    opened.close()
    shares, walls = [], []
    for _ in range(rounds):
        # With one thread none of the three runs while another does.
        parts = (
            Timed((pictures, "load"), (group, "to_inputs")),
            Timed(*((kind, "corrupt") for kind in corruptions)),
            Timed((forward, "__call__")),
        )
        with tempfile.TemporaryDirectory() as folder, parts[0], parts[1], parts[2]:
            start = time.perf_counter()
            sweep(opener, plan, Store(folder))
            walls.append(time.perf_counter() - start)
        told = [part.seconds for part in parts]
        shares.append(1 - sum(told) / walls[-1])
        print(f"{walls[-1]:.1f} s: decoding, noise and forward passes took {told}", file=sys.stderr, flush=True)
    print(
        f"overhead of a sweep of {len(plan.groups)} groups on {len(plan.dataset)} pictures: {np.median(shares):.2%} of "
        f"the wall time ({min(shares):.2%} to {max(shares):.2%}; {rounds} rounds of {np.median(walls):.0f} s)"
    )
    return bool(np.median(shares) <= MOST_OVERHEAD)


def ray_gain(opener: OpenVariants, plan: Plan, rounds: int) -> bool:
    import ray

    plan = replace(plan, noises=tuple(parse_noise(text) for text in MANY))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 else (2, 1):
            ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    sweep(opener, plan, Store(folder), ray_address="auto")
                    took = time.perf_counter() - start
            finally:
                ray.shutdown()
            seconds[workers].append(took)
            print(f"round {turn + 1}: {workers} workers, {took:.1f} s", file=sys.stderr, flush=True)
    gains = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    print(
        f"two Ray workers against one, {len(plan.groups)} groups on {len(plan.dataset)} pictures, start-up of "
        f"the workers included: {np.median(gains):.2f} times as fast ({min(gains):.2f} to {max(gains):.2f}; "
        f"{rounds} rounds, {np.median(seconds[1]):.0f} and {np.median(seconds[2]):.0f} s)"
    )
    return bool(np.median(gains) >= LEAST_GAIN)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["overhead", "ray"], choices=["overhead", "ray"])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    machine = this_machine(1)
    print(f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets)}")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        opener, plan = prepared(given.shared, given.pictures, Path(folder))
        for name, part in (("overhead", overhead), ("ray", ray_gain)):
            if name in given.parts:
                kept = part(opener, plan, given.rounds) and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
