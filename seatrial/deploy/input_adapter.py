"""From float32 NCHW RGB in [0, 1] to the layout, type and scale that a model file wants, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seatrial.core.target import Artefact
from seatrial.errors import BadInput
from seatrial.models.artefact import ArtefactModel
from seatrial.models.port import Port

Layout = Literal["NCHW", "NHWC", "as-is"]


@dataclass(frozen=True)
class InputAdapter:
    """How one input is fed and one output read.

    A picture p becomes (p - mean) / std, for integer inputs round(... / scale + zero_point) clipped to the type's
    range. Integer outputs become output_scale * (code - output_zero_point). `batch` is the file's fixed batch, over
    which larger batches are looped.

    Departures: an 8-bit input whose grid is that of pixels to within one code is fed the pixels themselves, as its
    deployments do (scale 1/128 stands for 1/127.5 in many published files).
    """

    layout: Layout
    dtype: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    zero_point: int = 0
    output_scale: float | None = None
    output_zero_point: int = 0
    batch: int | None = None

    @staticmethod
    def of(source: Port, output: Port, settings: Mapping[str, str]) -> InputAdapter:
        """Return the adapter that an artefact's settings and, where they are silent, the file's own ports describe.

        Raises BadInput for a picture input of integers whose grid nobody states.
        """
        mean, std = _floats(settings, "mean"), _floats(settings, "std")
        layout = _layout(source, settings.get("layout"))
        scale, zero_point = source.scale, source.zero_point or 0
        if "scale" in settings:
            (scale,), (zero_point,) = _floats(settings, "scale", 1), _floats(settings, "zero_point", 1)
        integer = source.dtype.startswith(("int", "uint"))
        if integer and layout != "as-is" and scale is None:
            raise BadInput(
                f"the {source.dtype} input '{source.name}' without a scale",
                "scale and zero point of the input",
                "state `scale` and `zero_point` in the .json beside the model",
            )
        if (
            scale is not None
            and source.dtype in ("uint8", "int8")
            and _takes_pixels(source.dtype, mean, std, scale, zero_point)
        ):
            mean, std, scale, zero_point = (), (), 1 / 255, int(np.iinfo(source.dtype).min)
        return InputAdapter(
            layout=layout,
            dtype=source.dtype,
            mean=mean,
            std=std,
            scale=scale if integer else None,
            zero_point=int(zero_point),
            output_scale=output.scale if output.dtype.startswith(("int", "uint")) else None,
            output_zero_point=output.zero_point or 0,
            batch=source.shape[0] if source.shape else None,
        )

    def feed(self, x: np.ndarray) -> np.ndarray:
        """Return `x` (float32 NCHW RGB in [0, 1], or tokens) as the file wants it."""
        if self.layout == "as-is":
            return np.ascontiguousarray(x.astype(self.dtype, copy=False))
        if self.mean:
            x = x - np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        if self.std:
            x = x / np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        if self.layout == "NHWC":
            x = x.transpose(0, 2, 3, 1)
        if self.scale is not None:
            ends = np.iinfo(self.dtype)
            x = np.clip(np.rint(x / np.float32(self.scale) + np.float32(self.zero_point)), ends.min, ends.max)
        return np.ascontiguousarray(x.astype(self.dtype, copy=False))

    def read(self, y: np.ndarray) -> np.ndarray:
        """Return an output as float32, [batch, classes] where all other dimensions are 1."""
        if self.output_scale is not None:
            y = (y.astype(np.float32) - np.float32(self.output_zero_point)) * np.float32(self.output_scale)
        if y.ndim > 2 and sum(size > 1 for size in y.shape[1:]) <= 1:
            y = y.reshape(y.shape[0], -1)
        return np.ascontiguousarray(y, dtype=np.float32)


def foreign_artefact(model: ArtefactModel, *, bits: str = "as-deployed") -> Artefact:
    """Return the artefact for a model file that seatrial did not write, with the settings that feed it."""
    settings = {
        "mean": json.dumps(list(model.mean)),
        "std": json.dumps(list(model.std)),
        "layout": model.layout,
        "hint": "default",  # as deployed: the runtime chooses the float type of what is not integer
    }
    if model.input_scale is not None:
        settings |= {"scale": json.dumps(model.input_scale), "zero_point": json.dumps(model.input_zero_point or 0)}
    return Artefact(model.path, model.format, bits, settings)


def _takes_pixels(dtype: str, mean: Sequence[float], std: Sequence[float], scale: float, zero_point: float) -> bool:
    """Return whether every pixel value's code is that value, moved to the type's range, to within one code."""
    pixels = np.arange(256.0)[:, None]
    values = (pixels / 255 - np.asarray(mean or (0.0,))) / np.asarray(std or (1.0,))
    codes = np.rint(values / scale + zero_point)
    return bool(np.abs(codes - (pixels + np.iinfo(dtype).min)).max() <= 1)


def _layout(source: Port, asked: str | None) -> Layout:
    if len(source.shape) != 4:
        return "as-is"
    if asked is not None:
        if asked not in ("NCHW", "NHWC"):
            raise BadInput(f"layout '{asked}'", "NCHW or NHWC", "correct the artefact's settings")
        return asked
    return "NHWC" if source.shape[3] in (1, 3) and source.shape[1] not in (1, 3) else "NCHW"


def _floats(settings: Mapping[str, str], key: str, count: int | None = None) -> tuple[float, ...]:
    """Read a setting as numbers: a JSON list or one number; () where it is missing and `count` is None."""
    text = settings.get(key, "[]" if count is None else "0")
    try:
        value = json.loads(text)
        numbers = tuple(float(part) for part in (value if isinstance(value, list) else [value]))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{key} {text}", "numbers", "correct the artefact's settings") from error
    positive = key in ("std", "scale")
    sound = all(math.isfinite(number) and (number > 0 or not positive) for number in numbers)
    if not sound or count not in (None, len(numbers)):
        wanted = "finite numbers" + (" above 0" if positive else "")
        raise BadInput(f"{key} {text}", wanted, "correct the artefact's settings")
    return numbers
