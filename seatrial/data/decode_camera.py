"""JPEG by the path of a camera: planes of YUV, their chroma enlarged, then one conversion to RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from seatrial.data.chroma import linear_up
from seatrial.data.decode_pyav import pyav_frame
from seatrial.errors import NotApplicable

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Rows and columns of luma to one sample of chroma. FFmpeg marks full range by a `j` or in the frame alone.
_FACTORS = {
    "gray": (1, 1),
    "yuv444p": (1, 1),
    "yuv422p": (1, 2),
    "yuv420p": (2, 2),
    "yuv440p": (2, 1),
    "yuv411p": (1, 4),
}


def decode_camera(encoded: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of a JPEG file, as stored, by way of its YUV planes.

    A definition, so that the figures can be had again anywhere: FFmpeg decodes the file to planes, and nothing else of
    it takes part. Chroma is interpolated linearly, its samples on the even columns and midway between rows: the place
    that video stacks assume for 4:2:0 (MPEG-2, H.264 by default), whereas JPEG means the middle of the four pixels
    (JFIF 1.02), so colors move by half a pixel. RGB is BT.601 in full range, rounded once, half to even, clipped:
    R = Y + 1.402 (V - 128), G = Y - 0.344136 (U - 128) - 0.714136 (V - 128), B = Y + 1.772 (U - 128) (JFIF 1.02).
    Raises NotApplicable for a file that holds no YUV (CMYK, RGB) and where FFmpeg refuses it.
    """
    frame = pyav_frame(encoded, "JPEG")
    layout = frame.format.name.replace("yuvj", "yuv")
    if layout not in _FACTORS:
        raise NotApplicable(f"a camera's YUV path does not take a JPEG file that holds {frame.format.name}")
    size_hw, factors = (frame.height, frame.width), _FACTORS[layout]
    luma = _plane(frame, 0, size_hw)
    if layout == "gray":
        return np.repeat(luma[:, :, None], 3, axis=2)
    small_hw = (-(-size_hw[0] // factors[0]), -(-size_hw[1] // factors[1]))
    blue, red = (linear_up(_plane(frame, index, small_hw), size_hw, factors) - np.float32(128) for index in (1, 2))
    bright = luma.astype(np.float32)
    pixels = np.empty((*size_hw, 3), dtype=np.uint8)
    _store(bright + np.float32(1.402) * red, pixels, 0)
    _store(bright - np.float32(0.344136) * blue - np.float32(0.714136) * red, pixels, 1)
    _store(bright + np.float32(1.772) * blue, pixels, 2)
    return pixels


def _plane(frame: VideoFrame, index: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    plane = frame.planes[index]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    return rows[: size_hw[0], : size_hw[1]]


def _store(
    value: Float32[np.ndarray, "height width"], pixels: UInt8[np.ndarray, "height width 3"], channel: int
) -> None:
    np.rint(value, out=value)
    np.clip(value, 0, 255, out=pixels[:, :, channel], casting="unsafe")
