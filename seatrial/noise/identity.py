"""Whether two pipelines give the same pictures, so that a noise that changes nothing is called so."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from seatrial.core.pipeline import Pipeline
from seatrial.core.sample import Picture, Sample
from seatrial.errors import BadInput


def same_pictures(
    load: Callable[[Pipeline, Sample], Picture], first: Pipeline, second: Pipeline, samples: Iterable[Sample]
) -> bool:
    """Return whether `first` and `second` load every one of `samples` to equal pixels; stops at a difference.

    `load` turns a sample into a picture at network size (seatrial.data.load has one). Raises BadInput without samples,
    and whatever `load` raises.
    """
    compared = 0
    for sample in samples:
        compared += 1
        if not np.array_equal(load(first, sample).pixels, load(second, sample).pixels):
            return False
    if not compared:
        raise BadInput("no samples", "at least one picture to compare", "give samples that have encoded bytes")
    return True
