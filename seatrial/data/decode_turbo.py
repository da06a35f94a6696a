"""JPEG by libjpeg-turbo with its faster choices, as devices that hurry decode."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from seatrial.data.bad_sample import BadSample
from seatrial.errors import BadInput, missing_extra


def decode_turbo(encoded: bytes, *, fast_dct: bool, plain_chroma: bool) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of a JPEG file, as stored.

    `fast_dct` takes the inverse DCT with 8-bit constants (Arai, Agui and Nakajima) for the accurate one;
    `plain_chroma` repeats subsampled chroma where libjpeg-turbo otherwise interpolates it linearly.
    Raises BadInput where simplejpeg, which carries libjpeg-turbo, is not installed, and BadSample where
    libjpeg-turbo refuses the file.
    """
    missing = turbo_missing()
    if missing is not None:
        raise missing
    import simplejpeg

    try:
        # Not strict: whether the file is whole is judged alike for every decoder, before this.
        return simplejpeg.decode_jpeg(
            encoded, colorspace="RGB", fastdct=fast_dct, fastupsample=plain_chroma, strict=False
        )
    except ValueError as failure:
        raise BadSample(f"libjpeg-turbo cannot decode it ({failure})") from failure


def turbo_missing() -> BadInput | None:
    """Return the error to raise where simplejpeg cannot be imported, else None."""
    try:
        import simplejpeg  # noqa: F401  (found is not enough: a broken installation is no codec either)
    except ImportError:
        return missing_extra("simplejpeg", "codecs", "the decoders turbo-fast-dct and turbo-plain-chroma")
    return None


@cache
def turbo_builds() -> dict[str, str]:
    """Return the version of simplejpeg and of the libjpeg-turbo inside it, or `absent`."""
    if turbo_missing() is not None:
        return {"simplejpeg": "absent"}
    # The library states its version in a string and offers no function that returns it.
    spec = find_spec("simplejpeg._jpeg")
    content = Path(spec.origin).read_bytes() if spec is not None and spec.origin else b""
    stated = re.search(rb"libjpeg-turbo version (\d[\w.]*)", content)
    return {
        "simplejpeg": version("simplejpeg"),
        "simplejpeg-jpeg": f"libjpeg-turbo {stated[1].decode()}" if stated else "unknown",
    }
