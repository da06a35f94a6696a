"""Still pictures by FFmpeg's decoders, called as a library."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from seatrial.errors import NotApplicable

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

PYAV_CODECS = {"JPEG": "mjpeg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}


def decode_pyav(encoded: bytes, image_format: str) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of a file, as stored, converted by FFmpeg's scaler; raises as `pyav_frame` does."""
    return np.ascontiguousarray(pyav_frame(encoded, image_format).to_ndarray(format="rgb24"))


def pyav_frame(encoded: bytes, image_format: str) -> VideoFrame:
    """Return the first frame of a file in the pixel format of the file itself.

    Raises NotApplicable where PyAV cannot be imported, has no decoder for the format or its decoder refuses the file.
    """
    if pyav_builds()["pyav"] == "absent":
        raise NotApplicable(
            "the package av cannot be imported; wanted PyAV for the decoders pyav and camera-yuv;"
            " run: pip install --force-reinstall av"
        )
    import av
    from av.error import FFmpegError
    from av.video.codeccontext import VideoCodecContext

    if image_format not in PYAV_CODECS:
        raise NotApplicable(f"PyAV is not used for {image_format} files")
    codec = av.CodecContext.create(PYAV_CODECS[image_format], "r")
    assert isinstance(codec, VideoCodecContext)
    codec.thread_count = 1
    try:
        frames = [*codec.decode(av.Packet(encoded)), *codec.decode(None)]
    except FFmpegError as failure:
        raise NotApplicable(f"PyAV cannot decode this {image_format} file: {failure.strerror}") from failure
    if not frames:
        raise NotApplicable(f"PyAV finds no picture in this {image_format} file")
    return frames[0]


@cache
def pyav_builds() -> dict[str, str]:
    """Return the versions of PyAV and of the libraries of FFmpeg inside it, or `absent`."""
    try:
        import av
    except ImportError:
        return {"pyav": "absent"}
    libraries = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    return {"pyav": av.__version__} | libraries
