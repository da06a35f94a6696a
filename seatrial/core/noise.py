"""The three families of noise: a different picture, the worst picture, a different system."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from seatrial.core.pipeline import Pipeline
from seatrial.core.predictor import Gift, Predictor

Family = Literal["attack", "corruption", "system"]
Access = Literal["white-box", "transfer", "score", "decision"]


@dataclass(frozen=True)
class NoiseSpec:
    """One question about noise, as data: the row of a report and a part of a cell's key.

    `severity` is 1 to 5 for a corruption, an epsilon such as "8/255" for an attack, None for a system noise;
    `option` names a choice such as `opencv-bilinear`, or what is special about an attack: `FROM_FLOAT`, `EIGHT_BIT`, or
    both in that order with a colon between.
    """

    family: Family
    name: str
    option: str | None = None
    norm: str | None = None
    severity: int | str | None = None

    @property
    def from_float(self) -> bool:
        """Whether this is an attack that is found on the float parent."""
        return self._is(FROM_FLOAT)

    @property
    def eight_bit(self) -> bool:
        """Whether this is an attack whose result is rounded to 8 bits."""
        return self._is(EIGHT_BIT)

    def _is(self, special: str) -> bool:
        return self.family == "attack" and special in (self.option or "").split(":")


FROM_FLOAT = "from-float"
"""The option of an attack that is found on the subjects' float parent."""
EIGHT_BIT = "8-bit"
"""The option of an attack whose result is rounded to levels of 8 bits, as a picture file would hold it."""
STATED = "@224"
"""Ends an epsilon that is stated for 3x224x224 pictures."""


def epsilon_size(text: object) -> float | None:
    """Return an epsilon as a number: `0.5/255`, `8`, `400@224` (as stated, not scaled); None for anything else."""
    above, _, below = str(text).removesuffix(STATED).partition("/")
    try:
        size = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return size if math.isfinite(size) else None


class Corruption(ABC):
    """A natural corruption at one severity, given in the constructor.

    Laws: same shape and dtype out; the argument is unchanged; equal `rng` states give equal results.
    """

    @abstractmethod
    def corrupt(
        self, picture: UInt8[np.ndarray, "height width 3"], *, rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Return the corrupted picture (uint8 RGB)."""


@dataclass(frozen=True)
class Perturbation:
    """What an attack found: `inputs` (float32 NCHW in [0, 1]) and, per sample, evidence of how it went.

    `zero_gradient` is the share of exactly zero entries of the first gradient (NaN without gradients);
    `queries` counts forward passes per sample.
    """

    inputs: Float[Tensor, "batch 3 height width"]
    zero_gradient: Float[np.ndarray, " batch"]
    queries: Int64[np.ndarray, " batch"]


class Attack(ABC):
    """An adversary with a budget (norm and epsilon) given in the constructor.

    Laws: inputs stay in [0, 1] and within epsilon of the originals in the stated norm; arguments are unchanged;
    the result for a batch depends on that batch and its generators alone.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[Gift]:
        """What the attacked predictor must give."""

    @abstractmethod
    def perturb(
        self,
        predictor: Predictor,
        inputs: Float[Tensor, "batch 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: Sequence[np.random.Generator],
    ) -> Perturbation:
        """Return inputs that the predictor should get wrong; `rng` holds one generator per sample."""


Arithmetic = Literal["as-is", "fp16", "bf16", "int8"]
Boxes = Literal["as-trained", "decode", "everywhere"]


@dataclass(frozen=True)
class System:
    """What surrounds the weights in deployment: the pipeline, the arithmetic, operators of the graph, the decoding.

    `graph` names edits of the float graph by operator, such as `ceil_mode` or `upsample:bilinear`; a recipe planned on
    the unaltered graph is applied after them. `boxes` says where a detector's boxes are decoded as if their far
    corner stood one pixel nearer: nowhere, in the decoding alone, or in overlaps and areas too.
    """

    pipeline: Pipeline
    arithmetic: Arithmetic = "as-is"
    graph: tuple[str, ...] = ()
    boxes: Boxes = "as-trained"


class SystemNoise(ABC):
    """A deployment that differs from training in one choice, given in the constructor.

    Law: the argument is unchanged and only the named choice differs.
    """

    @abstractmethod
    def alter(self, system: System) -> System:
        """Return the altered system; raises NotApplicable where the choice does not exist for it."""
