"""Resize noise: the deployed system shrinks pictures with another library or filter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from seatrial.core.noise import System, SystemNoise
from seatrial.core.pipeline import Resize, ResizeLibrary
from seatrial.data.resize import INTERPOLATIONS
from seatrial.errors import NoNoise, NotApplicable, unknown_name


def _options(*libraries: ResizeLibrary) -> tuple[str, ...]:
    return tuple(f"{library}-{name}" for library in libraries for name in INTERPOLATIONS[library])


RESIZE_OPTIONS = _options("pillow", "opencv")
"""The eleven resizes of SysNoise, table 1, as this noise names them."""

TORCH_RESIZE_OPTIONS = _options("torch")
"""Resizes of tensors, with and without antialiasing, which SysNoise has not."""


@final
@dataclass(frozen=True, kw_only=True)
class ResizeNoise(SystemNoise):
    """Resize with `option`, a pair of library and filter (Wang et al. 2023, SysNoise, arXiv 2307.00280, table 1).

    Equal names differ between libraries: Pillow widens its filter when it shrinks a picture, OpenCV does not, but for
    area, PyTorch where it is told to (`torch-bilinear-antialias`). Raises BadInput for an unknown option. Departures:
    the five of PyTorch are added to the eleven of the paper. A resize that is skipped because the pictures are already
    small shows only when pictures are compared (seatrial.noise.identity).
    """

    option: str

    def __post_init__(self) -> None:
        known = (*RESIZE_OPTIONS, *TORCH_RESIZE_OPTIONS)
        if self.option not in known:
            raise unknown_name("resize", self.option, known)

    def alter(self, system: System) -> System:
        """Return the system with that resize; raises NotApplicable without a resize, NoNoise where it is the same."""
        pipeline = system.pipeline
        resize = pipeline.resize or Resize()
        if pipeline.letterbox is None and resize.short_side_px is None and resize.exact_px is None:
            raise NotApplicable("the pipeline does not resize")
        if self.option == f"{resize.library}-{resize.interpolation}":
            raise NoNoise(f"the pipeline resizes with {self.option} already")
        library = next(name for name in INTERPOLATIONS if self.option.startswith(f"{name}-"))
        altered = replace(resize, library=library, interpolation=self.option.removeprefix(f"{library}-"))
        return replace(system, pipeline=replace(pipeline, resize=altered))
