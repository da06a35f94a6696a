"""What a user may choose about a job, with the defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seatrial.bench.toml_sweep import read_sweep
from seatrial.catalogue import entries, find
from seatrial.core.precision import parse_bits
from seatrial.deploy.machine import usable_cores
from seatrial.errors import BadInput
from seatrial.quant.granularity import Granularity

Progress = Callable[[int, int, str], None]


def default_threads() -> int:
    """Return the threads that a deployment on this machine would use: its cores, at most 8."""
    return min(usable_cores(), 8)


@dataclass(frozen=True)
class Settings:
    """Options shared by the jobs; see the command line's help for each.

    `noise` is a preset (`none`, `quick`, `full`), a comma-separated list such as `pgd:linf:2/255,gaussian_noise:3`, or
    a tuple of such texts; `keep` leaves sites out of quantization by glob.
    """

    target: str = "auto"
    method: str = "nearest"
    bits: str = "w8a8"
    ranges: str = "default"
    bias_correction: bool | None = None
    """None: for networks on pictures. Of texts, the first token's huge error would be spread over all the others."""
    equalization: str = "depthwise"
    weights_per: str = "channel"
    activations_per: str = "tensor"
    keep: tuple[str, ...] = ()
    noise: str | tuple[str, ...] = "quick"
    limit: int | None = None
    noise_limit: int | None = None
    """Samples under noise; None: 256 for `quick`, all for `full` and lists."""
    calibration: str | None = None
    calibration_samples: int = 256
    max_bad: float = 0.01
    seed: int = 0
    batch: int = 64
    threads: int = 0
    jobs: int = 1
    ray: str | None = None
    cache_gb: float = 0.0
    retry_failed: bool = False

    def __post_init__(self) -> None:
        find("quantizer", self.method)
        for target in self.target.split(",") if self.target != "auto" else ():
            find("target", target)
        if self.ranges != "default":
            find("ranges", self.ranges)
        if self.bits != "float":
            parse_bits(self.bits)
        Granularity.parse(self.weights_per, self.activations_per)
        for name, value, least in (
            ("--batch", self.batch, 1),
            ("--jobs", self.jobs, 1),
            ("--calibration-samples", self.calibration_samples, 1),
            ("--limit", 1 if self.limit is None else self.limit, 1),
            ("--threads", self.threads, 0),
        ):
            if value < least:
                raise BadInput(f"{name} {value}", f"at least {least}", "give a larger number")
        if not 0 <= self.cache_gb < math.inf:  # refuses what is no number, too
            raise BadInput(f"--cache-gb {self.cache_gb:g}", "0 or more gigabytes", "leave it out for no cache")
        if not 0 <= self.max_bad <= 1:
            raise BadInput(f"--max-bad {self.max_bad}", "a share from 0 to 1, or a percentage", "write for example 1%")
        if self.equalization not in ("none", "depthwise", "cross-layer"):
            raise BadInput(f"--equalization {self.equalization}", "none, depthwise or cross-layer", "pick one")

    @property
    def used_threads(self) -> int:
        """The number of threads that deployed models get."""
        return self.threads or default_threads()

    @property
    def noise_samples(self) -> int | None:
        """How many samples are asked under noise; None for all."""
        if self.noise_limit is not None:
            return self.noise_limit
        return 256 if self.noise == "quick" else None


def noise_setting(text: str) -> str | tuple[str, ...]:
    """Return a noise setting as given on the command line; a `.toml` file stands for its `noise` field."""
    if text.endswith(".toml"):
        listed = read_sweep(Path(text)).noise
        return listed if isinstance(listed, str) else tuple(listed)
    return text


def target_names() -> list[str]:
    """Return the names of all targets."""
    return list(entries("target"))
