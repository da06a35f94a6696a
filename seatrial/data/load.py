"""From a sample to a picture at network size, and on to a float tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.core.sample import Picture, Placement, Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.color import through_yuv
from seatrial.data.decode import MAX_PIXELS, decode
from seatrial.data.resize import resize


def load(pipeline: Pipeline, sample: Sample) -> Picture:
    """Return the picture of `sample` at network size: decoded, through its color, resized, cropped or letterboxed.

    Equal to torchvision's `Resize(short side)` and `CenterCrop` on a Pillow image, bit for bit: the long side is
    rounded down, the crop's offset is rounded half to even (down where the pipeline says so), and a picture that its
    resize left smaller than the crop is padded with black. A picture that is not resized (no `Resize`, or
    `skip_up_to`) and does not cover the crop is enlarged until it does. With a letterbox it is resized once, to fit.
    An `array` sample, already at network size, is rounded to 8 bits.
    Raises BadSample where the file cannot be decoded, where a long thin picture would be resized to more than 100
    megapixels, and where an array has not the network's size.
    """
    if sample.array is not None:
        _refuse_other_size(pipeline, sample.array)
        pixels = np.ascontiguousarray(np.rint(sample.array.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8))
        return Picture(pixels, (pixels.shape[0], pixels.shape[1]), Placement((1.0, 1.0), (0, 0)))
    if sample.encoded is None:
        raise BadSample("neither encoded bytes nor an array")
    pixels = through_yuv(decode(sample.encoded, pipeline.decoder, upright=pipeline.exif), pipeline.color)
    source_px = (pixels.shape[0], pixels.shape[1])
    size_px = resized_size_px(pipeline, source_px)
    if size_px[0] * size_px[1] > MAX_PIXELS:
        raise BadSample(f"{source_px[1]}x{source_px[0]} pixels would be resized to {size_px[1]}x{size_px[0]}")
    how = pipeline.resize or Resize()
    pixels = resize(pixels, size_px, how.library, how.interpolation)
    placement = placed(pipeline, source_px)
    fill = 0 if pipeline.letterbox is None else pipeline.letterbox.value
    return Picture(_framed(pixels, pipeline.crop_px, placement.offset_px, fill), source_px, placement)


def placed(pipeline: Pipeline, source_px: tuple[int, int]) -> Placement:
    """Return where a picture of size `source_px` (height, width) stands in the network's input."""
    size_px = resized_size_px(pipeline, source_px)
    offset_px = tuple(_offset_px(pipeline, side, crop) for side, crop in zip(size_px, pipeline.crop_px))
    return Placement((size_px[0] / source_px[0], size_px[1] / source_px[1]), (offset_px[0], offset_px[1]))


def to_input(picture: Picture) -> Float[Tensor, "3 height width"]:
    """Return the picture as float32 CHW RGB in [0, 1] (torchvision's `ToTensor`)."""
    return torch.from_numpy(np.ascontiguousarray(picture.pixels.transpose(2, 0, 1))).to(torch.float32).div(255)


def to_inputs(pictures: Sequence[Picture]) -> Float[Tensor, "batch 3 height width"]:
    """Return pictures of one size as a batch: `to_input` of each, stacked, with one pass over memory less."""
    levels = np.empty((len(pictures), 3, *pictures[0].pixels.shape[:2]), dtype=np.uint8)
    for row, picture in zip(levels, pictures, strict=True):
        row[...] = picture.pixels.transpose(2, 0, 1)
    return torch.from_numpy(levels).to(torch.float32).div_(255)


def load_input(pipeline: Pipeline, sample: Sample) -> Float[Tensor, "3 height width"]:
    """Return what the network sees of `sample`: `to_input(load(...))`, or the array itself, unrounded."""
    if sample.array is not None:
        _refuse_other_size(pipeline, sample.array)
        return torch.from_numpy(np.array(sample.array, dtype=np.float32))
    return to_input(load(pipeline, sample))


def default_pipeline(crop_px: tuple[int, int]) -> Pipeline:
    """Return the pipeline of a model that brings no configuration of its own, marked as assumed.

    Pictures whose short side is at most 1.15 times the crop's are cropped only, others are first resized to 8/7 of
    it (256 for 224).
    """
    return Pipeline(crop_px, Resize(short_side_px=round(min(crop_px) * 8 / 7), skip_up_to=1.15), assumed=True)


def resized_size_px(pipeline: Pipeline, source_px: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a picture of size `source_px` after the pipeline's resize, before crop or filling."""
    height, width = source_px
    if pipeline.letterbox is not None:
        return _fitting(source_px, pipeline.crop_px, pipeline.letterbox)
    how = pipeline.resize
    skipped = how is None or (how.short_side_px is None and how.exact_px is None)
    if how is not None and how.skip_up_to is not None:
        skipped = skipped or min(source_px) <= how.skip_up_to * min(pipeline.crop_px)
    if skipped or how is None:
        return _covering(source_px, pipeline.crop_px)
    if how.exact_px is not None:
        return how.exact_px
    short_px = how.short_side_px
    assert short_px is not None
    long_px = max(1, int(short_px * max(source_px) / min(source_px)))
    return (short_px, long_px) if height <= width else (long_px, short_px)


def _covering(source_px: tuple[int, int], crop_px: tuple[int, int]) -> tuple[int, int]:
    """Return the source's size, enlarged where the crop would stick out."""
    (height, width), (crop_height, crop_width) = source_px, crop_px
    if height >= crop_height and width >= crop_width:
        return source_px
    if crop_height * width >= crop_width * height:  # the height decides
        return crop_height, max(crop_width, crop_height * width // height)
    return max(crop_height, crop_width * height // width), crop_width


def _fitting(source_px: tuple[int, int], crop_px: tuple[int, int], how: Letterbox) -> tuple[int, int]:
    """Return the largest size with the source's ratio that fits; one side is the crop's, the other at least 1."""
    if not how.keep_ratio:
        return crop_px
    (height, width), (crop_height, crop_width) = source_px, crop_px
    # One division of whole numbers: a ratio rounded before it is multiplied may fall a pixel short.
    whole = round if how.centered else int
    if crop_height * width <= crop_width * height:  # the height decides
        return crop_height, max(1, whole(crop_height * width / height))
    return max(1, whole(crop_width * height / width)), crop_width


def _offset_px(pipeline: Pipeline, side_px: int, crop_px: int) -> int:
    """Return where a resized side starts in the crop: negative where it is cut, positive where it is padded."""
    if pipeline.letterbox is not None:
        return (crop_px - side_px) // 2 if pipeline.letterbox.centered else 0
    if side_px < crop_px:
        return (crop_px - side_px) // 2
    halved = round if pipeline.odd_margin == "even" else int
    return -halved((side_px - crop_px) / 2)


def _framed(
    pixels: UInt8[np.ndarray, "height width 3"], crop_px: tuple[int, int], offset_px: tuple[int, int], fill: int
) -> UInt8[np.ndarray, "crop_height crop_width 3"]:
    top, left = (max(0, -offset) for offset in offset_px)
    pixels = pixels[top : top + crop_px[0], left : left + crop_px[1]]
    if pixels.shape[:2] == crop_px:
        return np.ascontiguousarray(pixels)
    framed = np.full((*crop_px, 3), fill, dtype=np.uint8)
    top, left = (max(0, offset) for offset in offset_px)
    framed[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return framed


def _refuse_other_size(pipeline: Pipeline, array: np.ndarray) -> None:
    if array.shape != (3, *pipeline.crop_px):
        wanted = "x".join(str(side) for side in (3, *pipeline.crop_px))
        raise BadSample(f"an array of shape {'x'.join(map(str, array.shape))}, the network takes {wanted}")
