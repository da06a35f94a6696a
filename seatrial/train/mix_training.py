"""Mix training: every picture comes from a decoder and a resize that are drawn anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from seatrial.core.pipeline import Decoder, Pipeline
from seatrial.core.sample import Dataset
from seatrial.data.load import load
from seatrial.data.resize import INTERPOLATIONS
from seatrial.errors import BadInput, unknown_name
from seatrial.train.objective import Objective
from seatrial.train.shift_flip import ShiftFlip, unit

DECODERS: tuple[Decoder, ...] = ("pillow", "opencv", "pyav")
RESIZES = tuple(f"{library}-{kind}" for library in ("pillow", "opencv") for kind in ("bilinear", "nearest", "bicubic"))
"""The six resizes between which the paper mixes (table 7); its decoders are the three above (table 8)."""


@final
@dataclass(frozen=True, kw_only=True)
class MixTraining(Objective):
    """Cross entropy on pictures whose decoder and resize are drawn (Wang et al. 2023, SysNoise, section 4.4).

    `decoders` and `resizes` are what is drawn from; an empty one leaves the pipeline's own. `draw` says whether one
    pair serves a whole batch, as in the paper ("iteration"), or each picture has its own. `augment` acts behind the
    draw. Raises BadInput for unknown names and where nothing is left to draw from.
    Departures: the variants of a picture are decoded once and kept (`variants`), not decoded anew in each epoch.
    """

    decoders: tuple[Decoder, ...] = DECODERS
    resizes: tuple[str, ...] = RESIZES
    draw: Literal["picture", "iteration"] = "iteration"
    augment: ShiftFlip | None = None

    def __post_init__(self) -> None:
        known = tuple(f"{library}-{name}" for library, names in INTERPOLATIONS.items() for name in names)
        for name in self.resizes:
            if name not in known:
                raise unknown_name("resize", name, known)
        if self.draw not in ("picture", "iteration"):
            raise unknown_name("draw", self.draw, ("picture", "iteration"))
        if not self.decoders and not self.resizes:
            raise BadInput("neither decoders nor resizes", "something to draw from", "name at least two of one kind")

    def pipelines(self, pipeline: Pipeline) -> tuple[Pipeline, ...]:
        """Return the pipelines between which is drawn; resizes are left out where `pipeline` does not resize."""
        resize = pipeline.resize
        resizes = [resize]
        if resize is not None and (resize.short_side_px or resize.exact_px) and self.resizes:
            names = [name.partition("-") for name in self.resizes]
            resizes = [replace(resize, library=library, interpolation=kind) for library, _, kind in names]  # pyright: ignore[reportArgumentType]
        return tuple(
            replace(pipeline, decoder=decoder, resize=how)
            for decoder, how in product(self.decoders or (pipeline.decoder,), resizes)
        )

    def loss(
        self,
        module: nn.Module,
        inputs: UInt8[Tensor, "batch variants 3 height width"],
        labels: Int64[Tensor, " batch"],
        *,
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy on one drawn variant of each picture."""
        count, choices = inputs.shape[:2]
        drawn = rng.integers(0, choices, count if self.draw == "picture" else 1)
        chosen = inputs[torch.arange(count), torch.from_numpy(np.broadcast_to(drawn, count).copy())]
        shown = unit(chosen) if self.augment is None else self.augment(chosen, rng)
        return F.cross_entropy(module(shown), labels)


def variants(
    pipelines: Sequence[Pipeline], samples: Dataset, *, workers: int = 1
) -> tuple[UInt8[Tensor, "samples variants 3 height width"], tuple[Pipeline, ...]]:
    """Load every sample through every pipeline, and return the pictures with the pipelines that tell any two apart.

    A pipeline that gives the pictures of an earlier one throughout is left out: it would only shift the draw. Takes
    3 * height * width bytes for each sample and pipeline. Raises BadInput where all pipelines give equal pictures, and
    BadSample for a sample that cannot be decoded.
    """
    loaded = [pictures(pipeline, samples, workers=workers) for pipeline in pipelines]
    kept: list[int] = []
    for i, one in enumerate(loaded):
        if not any(torch.equal(one, loaded[j]) for j in kept):
            kept.append(i)
    if len(kept) < 2:
        raise BadInput(
            f"{len(pipelines)} decoders and resizes that give equal pictures",
            "encoded pictures that decode differently, or are resized",
            "train on the original files, with a resize (--resize)",
        )
    return torch.stack([loaded[i] for i in kept], dim=1), tuple(pipelines[i] for i in kept)


def pictures(pipeline: Pipeline, samples: Dataset, *, workers: int = 1) -> UInt8[Tensor, "samples 3 height width"]:
    """Return every sample at network size, in order, as 8-bit RGB; arrays are rounded to 8 bits."""
    found = np.empty((len(samples), 3, *pipeline.crop_px), dtype=np.uint8)

    def fill(index: int) -> None:
        found[index] = load(pipeline, samples[index]).pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        list(pool.map(fill, range(len(samples))))  # a list, so that a bad sample raises
    return torch.from_numpy(found)
