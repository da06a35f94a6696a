"""How pictures become inputs, as a model's own configuration says it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.core.graph import Normalization
from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.errors import BadInput, unknown_name

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "area")
_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_ALREADY_RESIZED = 1.15
_NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_JSON_LIMIT = 16 << 20
_NOTE = f"pictures whose short side is at most {_ALREADY_RESIZED} times the crop count as resized already"


@dataclass(frozen=True)
class Preprocessing:
    """Decoding to network size and the normalization after it, with what had to be assumed."""

    pipeline: Pipeline
    mean: tuple[float, ...] = _NONE[0]
    std: tuple[float, ...] = _NONE[1]
    warnings: tuple[str, ...] = ()

    @property
    def normalization(self) -> Normalization | None:
        """The normalization of pictures in [0, 1]; None where there is none."""
        return None if (self.mean, self.std) == _NONE else Normalization(self.mean, self.std)


@dataclass(frozen=True)
class Overrides:
    """What the user says about preprocessing; None leaves the model's own word.

    `resize` is the short side in pixels, 0 for none; `crop_px` and `input_size_px` are (height, width).
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resize: int | None = None
    crop_px: tuple[int, int] | None = None
    interpolation: str | None = None
    input_size_px: tuple[int, int] | None = None


def assumed(size_px: tuple[int, int]) -> Preprocessing:
    """Return the preprocessing of a model that says nothing: bilinear resize to 8/7 of the input, centre crop.

    Pictures whose short side is at most 1.15 times the input are only cropped; no normalization.
    """
    short = min(size_px)
    resize = Resize(short_side_px=round(short * 8 / 7), interpolation="bilinear", skip_up_to=_ALREADY_RESIZED)
    if size_px[0] != size_px[1]:
        resize = Resize(exact_px=size_px, interpolation="bilinear")
    return Preprocessing(
        Pipeline(crop_px=size_px, resize=resize, assumed=True),
        warnings=(
            f"preprocessing assumed: resize to {round(short * 8 / 7)}, centre crop {size_px[0]}x{size_px[1]}; {_NOTE}",
            "normalization assumed: none; pass --mean and --std",
        ),
    )


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Return what a resolved timm data configuration says, as `timm.data.create_transform` would do in evaluation."""
    height, width = (int(size) for size in config["input_size"][-2:])
    notes = []
    share = float(config.get("crop_pct") or 1.0)
    mode = config.get("crop_mode") or "center"
    interpolation = str(config.get("interpolation") or "bicubic")
    if interpolation not in INTERPOLATIONS:
        notes.append(f"timm's interpolation '{interpolation}' replaced by bicubic")
        interpolation = "bicubic"
    scaled = math.floor(height / share), math.floor(width / share)
    if mode == "squash" or height != width:
        resize = Resize(exact_px=scaled, interpolation=interpolation)
    else:
        resize = Resize(short_side_px=scaled[0], interpolation=interpolation)
    if mode not in ("center", "squash") or (height != width and mode != "squash"):
        notes.append(f"timm's crop mode '{mode}' at {height}x{width} replaced by a plain resize and centre crop")
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    return Preprocessing(Pipeline(crop_px=(height, width), resize=resize), mean, std, tuple(notes))


def of_torchvision(preset: Any, note: str = "") -> Preprocessing:
    """Return what an `ImageClassification` preset of torchvision says."""
    crop, short = int(preset.crop_size[0]), int(preset.resize_size[0])
    resize = Resize(short_side_px=short, interpolation=str(preset.interpolation.value))
    mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
    return Preprocessing(Pipeline(crop_px=(crop, crop), resize=resize), mean, std, (note,) if note else ())


def of_transformers(config: Mapping[str, Any]) -> Preprocessing:
    """Return what the configuration of a transformers image processor says; raises BadInput for an unknown size."""
    notes = [f"'{key}' of the image processor is not done" for key in ("do_pad", "rescale_offset") if config.get(key)]
    number = config.get("resample", 2)
    interpolation = _PILLOW[number] if isinstance(number, int) and 0 <= number < len(_PILLOW) else "bilinear"
    size = _edges(config.get("size"))
    crop = _edges(config.get("crop_size")) if config.get("do_center_crop") else None
    if size is None and crop is None:
        raise BadInput(f"an image processor with size {config.get('size')}", "height and width", "pass --input-size")
    resize = None
    if size is not None and config.get("do_resize", True):
        if isinstance(size, tuple):
            resize = Resize(exact_px=size, interpolation=interpolation)
            crop = crop or size
        else:
            share = float(config.get("crop_pct") or 1.0)
            if config.get("crop_pct") and size >= 384:  # ConvNeXt: large inputs are squashed, not cropped
                resize = Resize(exact_px=(size, size), interpolation=interpolation)
            else:
                resize = Resize(short_side_px=int(size / share), interpolation=interpolation)
            crop = crop or (size, size)
    if crop is None:
        crop = size
    crop_px = crop if isinstance(crop, tuple) else (int(crop or 0), int(crop or 0))
    # The network may expect 0..255 (no rescale); our inputs are 0..1.
    factor = 255.0 * float(config.get("rescale_factor") or 1 / 255) if config.get("do_rescale", True) else 255.0
    mean, std = _NONE
    if config.get("do_normalize", True):
        mean, std = (_three(config.get(key), default) for key, default in (("image_mean", 0.0), ("image_std", 1.0)))
    if abs(factor - 1) > 1e-6:
        mean, std = tuple(value / factor for value in mean), tuple(value / factor for value in std)
    return Preprocessing(Pipeline(crop_px=crop_px, resize=resize, odd_margin="down"), mean, std, tuple(notes))


def of_json(config: Mapping[str, Any], size_px: tuple[int, int], source: str) -> Preprocessing:
    """Return what the `FILE.json` beside a file says: keys `resize`, `interpolation`, `crop`, `mean`, `std`.

    `resize` is a short side or [height, width]; null means none, and a null `crop` is the network's input.
    `letterbox`, a grey level or an object of `value` and `centered`, fits the picture into the input instead.
    `odd_margin` ("down" where it is not given) is that of `Pipeline`.
    Pictures that are hardly larger than the crop are not resized again. Raises BadInput for other values.
    """
    notes = []
    crop = _pair(config.get("crop"), "crop", source) or size_px
    interpolation = config.get("interpolation") or "bilinear"
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", str(interpolation), INTERPOLATIONS)
    value = config.get("resize")
    resize = None
    letterbox = _letterbox(config.get("letterbox"), source)
    if letterbox is not None:
        resize = Resize(interpolation=interpolation)
    elif isinstance(value, list):
        resize = Resize(exact_px=_pair(value, "resize", source), interpolation=interpolation)
    elif value is not None:
        short = _pair(value, "resize", source)
        assert short is not None
        resize = Resize(short_side_px=short[0], interpolation=interpolation, skip_up_to=_ALREADY_RESIZED)
        notes.append(f"{_NOTE}, as {source} is used with pictures of either kind")
    mean, std = _NONE
    if config.get("mean") is None and config.get("std") is None:
        notes.append(f"normalization assumed: none, as {source} has no mean and std")
    else:
        mean, std = (_numbers(config.get(key), key, source, default) for key, default in (("mean", 0.0), ("std", 1.0)))
    odd = config.get("odd_margin", "down")
    if odd not in ("even", "down"):
        raise BadInput(f"odd_margin {odd!r} in {source}", "'even' or 'down'", "correct it")
    pipeline = Pipeline(crop_px=crop, resize=resize, odd_margin=odd, letterbox=letterbox)
    return Preprocessing(pipeline, mean, std, tuple(notes))


def _letterbox(value: Any, source: str) -> Letterbox | None:
    match value:
        case None | False:
            return None
        case True:
            return Letterbox()
        case int(fill) if 0 <= fill <= 255:
            return Letterbox(fill)
        case {"value": int(fill), **rest} if 0 <= fill <= 255 and rest.keys() <= {"centered"}:
            return Letterbox(fill, bool(rest.get("centered", False)))
    raise BadInput(
        f"letterbox {value!r} in {source}"[:160], 'a grey level from 0 to 255, or {"value", "centered"}', "correct it"
    )


def overridden(preprocessing: Preprocessing, user: Overrides) -> Preprocessing:
    """Return the preprocessing with the user's word on top; raises BadInput for impossible values."""
    pipeline = preprocessing.pipeline
    if user.input_size_px is not None and user.crop_px is None:
        pipeline = _scaled(pipeline, user.input_size_px)
    elif user.input_size_px is not None and user.input_size_px != user.crop_px:
        raise BadInput(f"--crop {user.crop_px} with --input-size {user.input_size_px}", "equal sizes", "leave one out")
    resize = pipeline.resize
    warnings = preprocessing.warnings
    if user.crop_px is not None:
        pipeline = dataclasses.replace(
            pipeline, crop_px=_pair(list(user.crop_px), "crop", "--crop") or pipeline.crop_px
        )
    if user.interpolation is not None and user.interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", user.interpolation, INTERPOLATIONS)
    if user.resize is not None:
        if user.resize < 0:
            raise BadInput(f"--resize {user.resize}", "a number of pixels, or 0 for none", "correct it")
        filter_ = resize.interpolation if resize else "bilinear"
        resize = Resize(short_side_px=user.resize, interpolation=filter_) if user.resize else None
    if user.interpolation is not None and resize is not None:
        resize = dataclasses.replace(resize, interpolation=user.interpolation)
    pipeline = dataclasses.replace(pipeline, resize=resize)
    mean, std = preprocessing.mean, preprocessing.std
    if user.mean is not None:
        mean = _numbers(list(user.mean), "mean", "--mean", 0.0)
    if user.std is not None:
        std = _numbers(list(user.std), "std", "--std", 1.0)
    if user.mean is not None or user.std is not None:
        warnings = tuple(text for text in warnings if not text.startswith("normalization assumed"))
    if user.resize is not None and user.crop_px is not None:
        pipeline = dataclasses.replace(pipeline, assumed=False)
        warnings = tuple(text for text in warnings if not text.startswith("preprocessing assumed"))
    return dataclasses.replace(preprocessing, pipeline=pipeline, mean=mean, std=std, warnings=warnings)


def _scaled(pipeline: Pipeline, size_px: tuple[int, int]) -> Pipeline:
    """Return the pipeline for another input size; the resize grows with it."""
    if pipeline.crop_px == size_px:
        return pipeline
    share = min(size_px) / min(pipeline.crop_px)
    resize = pipeline.resize
    if resize is not None and resize.short_side_px is not None:
        resize = dataclasses.replace(resize, short_side_px=round(resize.short_side_px * share))
    elif resize is not None and resize.exact_px is not None:
        (height, width), (old_height, old_width) = resize.exact_px, pipeline.crop_px
        exact = round(height * size_px[0] / old_height), round(width * size_px[1] / old_width)
        resize = dataclasses.replace(resize, exact_px=exact)
    return dataclasses.replace(pipeline, crop_px=size_px, resize=resize)


def config_beside(path: Path) -> tuple[Mapping[str, Any], str] | None:
    """Return content and name of `FILE.json` beside a file, else of `preprocessing.json` in its folder, else None."""
    for beside in (path.with_suffix(".json"), path.parent / "preprocessing.json"):
        if beside.is_file():
            try:
                if beside.stat().st_size > _JSON_LIMIT:
                    raise ValueError("too large")
                config = json.loads(beside.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise BadInput(
                    f"'{beside}' cannot be read ({error})", "a JSON object", "correct or remove it"
                ) from error
            if not isinstance(config, dict):
                raise BadInput(
                    f"'{beside}' is no JSON object", "keys such as mean, std, resize", "correct or remove it"
                )
            return config, beside.name
    return None


def _edges(size: Any) -> tuple[int, int] | int | None:
    """Read a size of transformers: exact (height, width), or the length of the short side."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping):
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        if size.get("shortest_edge"):
            return int(size["shortest_edge"])
    return None


def _pair(value: Any, key: str, source: str) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else [value, value]
    if len(parts) == 2 and all(isinstance(part, int) and 0 < part < 1 << 15 for part in parts):
        return int(parts[0]), int(parts[1])
    raise BadInput(f"{key} {value!r} in {source}", "a number of pixels, or height and width", "correct it")


def _three(value: Any, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,) * 3
    return tuple(float(part) for part in value) if isinstance(value, list | tuple) else (float(str(value)),) * 3


def _numbers(value: Any, key: str, source: str, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,) * 3
    parts = value if isinstance(value, list) else [value] * 3
    if len(parts) == 1:
        parts = parts * 3
    if len(parts) == 3 and all(isinstance(part, int | float) and math.isfinite(part) for part in parts):
        numbers = tuple(float(part) for part in parts)
        if key != "std" or min(numbers) > 0:
            return numbers
    raise BadInput(f"{key} {value!r} in {source}", "three numbers (for std: positive)", "correct it")
