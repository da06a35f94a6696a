"""One search after another, each on the samples that the ones before left standing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.noise import Perturbation
from seatrial.core.predictor import Predictor
from seatrial.errors import NotApplicable
from seatrial.noise.apgd_walk import Walked

Walk = Callable[[Tensor], Walked]
"""From the indices of the samples that still stand to where their search ended."""


def in_turn(
    predictor: Predictor,
    inputs: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, " batch"],
    walks: Callable[[Tensor], Sequence[Walk]],
) -> Perturbation:
    """Return per sample what the search found in which it fell, else what its last one ended at.

    `walks` makes the searches from the logits of `inputs`. A sample that is misclassified already comes back as it is,
    for one query. The share of zero gradients is that of the first search. Raises NotApplicable without gradients.
    """
    if "gradients" not in predictor.gives:
        raise NotApplicable("the predictor gives no gradients")
    inputs = inputs.detach()
    found, zeros = inputs.clone(), np.full(len(inputs), np.nan)
    queries = np.ones(len(inputs), dtype=np.int64)
    with torch.no_grad():
        clean = predictor(inputs)
    standing = (clean.argmax(1) == labels).nonzero()[:, 0]
    for turn, walk in enumerate(walks(clean)):
        if not len(standing):
            break
        walked = walk(standing)
        found[standing] = walked.point
        at = standing.cpu().numpy()
        if turn == 0:
            zeros[at] = walked.zero_gradient
        queries[at] += walked.asked
        standing = standing[~walked.fallen]
    return Perturbation(found, zeros, queries)
