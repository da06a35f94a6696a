"""What a sweep costs beside decoding, noise and forward passes, and what a second Ray worker brings.

    python benchmarks/sweep.py [overhead] [ray] [--shared FOLDER] [--pictures 800] [--rounds 3]

SqueezeNet 1.1 in float on ONNX Runtime with one thread, on pictures of ImageNet validation. `overhead` runs the sweep
and, in alternation, a plain loop over the same batches that decodes, corrupts and asks the network and does nothing
else; it prints by how much longer the sweep takes, in processor time and in wall time. `ray` runs the same sweep on a
Ray cluster of one and of two CPUs, one thread a worker, so it needs two idle cores. Exits with 1 where the overhead is
above 5 % of the processor time, or two workers are less than 1.6 times as fast. Needs the development data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seatrial.bench.group import sample_generator
from seatrial.bench.plan import Plan
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.catalogue import make
from seatrial.core.noise import Corruption, System, SystemNoise
from seatrial.core.pipeline import Pipeline
from seatrial.data.load import load, to_input
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
MANY = (*NOISES, "contrast:3", "brightness:3", "defocus_blur:3", "color:nv12-exact")
MOST_OVERHEAD, LEAST_GAIN = 0.05, 1.6


def prepared(shared: Path, count: int, folder: Path) -> tuple[OpenVariants, Plan]:
    """Return what opens the network, and the plan of clean data."""
    settings = Settings(threads=1, limit=count)
    path = shared / "models" / "squeezenet1_1_imagenet.pt2"
    subject = open_subject(path, shared / "imagenet_val_800", settings, calibrate=False)
    assert isinstance(subject.model, Model)
    file = make("target", "onnxruntime").compile(fold_batch_norm(subject.model.graph), folder / "float", bits="float32")
    return OpenVariants((Variant("float", "onnxruntime", file),), 1), clean_plan(subject, settings)


@dataclass(frozen=True)
class Clocks:
    """Seconds of processor and wall."""

    processor: float
    wall: float

    @staticmethod
    def of(work: Callable[[], object]) -> Clocks:
        processor, wall = time.process_time(), time.perf_counter()
        work()
        return Clocks(time.process_time() - processor, time.perf_counter() - wall)


def bare(opener: OpenVariants, plan: Plan) -> None:
    """Decode, corrupt and ask, nothing else: no records, no store, no differences."""
    (subject,) = opener()
    torch.set_num_threads(1)
    for group in plan.groups:
        noise = group.noise
        for indices in plan.batches:
            samples = [plan.dataset[index] for index in indices]

            def inputs(pipeline: Pipeline, samples: Sequence = samples) -> Tensor:
                return torch.stack([to_input(load(pipeline, sample)) for sample in samples])

            if isinstance(noise, Corruption):
                assert group.spec is not None
                shown = []
                for sample in samples:
                    picture = load(plan.pipeline, sample)
                    pixels = noise.corrupt(picture.pixels, rng=sample_generator(plan.seed, group.spec, sample.id))
                    shown.append(to_input(replace(picture, pixels=pixels)))
                asked = [torch.stack(shown)]
            elif isinstance(noise, SystemNoise):
                asked = [inputs(noise.alter(System(plan.pipeline)).pipeline)]
                # A difference is against the reference pipeline, which is decoded for every noise and asked once.
                reference = inputs(plan.pipeline)
                asked += [reference] if group is plan.groups[-1] else []
            else:
                asked = [inputs(plan.pipeline)]
            for batch in asked:
                subject.predictor(batch)
    subject.close()


def overhead(opener: OpenVariants, plan: Plan, rounds: int) -> bool:
    plan = replace(plan, noises=tuple(parse_noise(text) for text in NOISES))  # the system noise stands last
    found: list[tuple[Clocks, Clocks]] = []
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                "sweep": lambda folder=folder: sweep(opener, plan, Store(folder)),
                "bare": lambda: bare(opener, plan),
            }
            clocks = {name: Clocks.of(runs[name]) for name in (list(runs) if turn % 2 else list(runs)[::-1])}
        found.append((clocks["sweep"], clocks["bare"]))
        print(f"round {turn + 1}: {clocks}", file=sys.stderr, flush=True)
    shares = {
        kind: [1 - getattr(other, kind) / getattr(whole, kind) for whole, other in found]
        for kind in ("processor", "wall")
    }
    for kind, told in shares.items():
        print(
            f"overhead of a sweep of {len(plan.groups)} groups on {len(plan.dataset)} pictures, {kind} time: "
            f"{np.median(told):.1%} of the whole ({min(told):.1%} to {max(told):.1%}; {rounds} rounds, "
            f"{np.median([whole.wall for whole, _ in found]):.0f} s)"
        )
    return bool(np.median(shares["processor"]) <= MOST_OVERHEAD)


def ray_gain(opener: OpenVariants, plan: Plan, rounds: int) -> bool:
    import ray

    plan = replace(plan, noises=tuple(parse_noise(text) for text in MANY))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 else (2, 1):
            ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False)
            try:
                with tempfile.TemporaryDirectory() as folder:
                    clocks = Clocks.of(lambda folder=folder: sweep(opener, plan, Store(folder), ray_address="auto"))
            finally:
                ray.shutdown()
            seconds[workers].append(clocks.wall)
            print(f"round {turn + 1}: {workers} workers, {clocks.wall:.1f} s", file=sys.stderr, flush=True)
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
