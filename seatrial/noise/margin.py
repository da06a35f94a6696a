"""How far a sample is from being misclassified."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.errors import BadInput


def margin(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the logit of the label minus the largest other one; below 0 means misclassified.

    A margin of exactly 0 is a tie, which quantized outputs do have and which an arg max may still resolve to the
    label, so attacks count it as not yet fallen. Raises BadInput unless `logits` are [batch, two or more classes].
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise BadInput(
            f"outputs of shape {tuple(logits.shape)}", "logits [batch, two or more classes]", "attack a classifier"
        )
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return logits.gather(1, own)[:, 0] - others
