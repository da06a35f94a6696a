"""The gradient that white-box attacks climb, and whether there is one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from seatrial.core.predictor import Predictor
from seatrial.errors import NotApplicable


def loss_gradient(
    predictor: Predictor, inputs: Float[Tensor, "batch 3 height width"], labels: Int64[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, "batch classes"]]:
    """Return the gradient of the cross entropy, summed over samples, by `inputs`, and the logits.

    The sum keeps a sample's gradient independent of the size of the batch. Gradients of parameters are neither
    computed nor stored. An entry that is not a number (half precision overflows) is given as 0. Raises NotApplicable
    where the predictor gives no gradient.
    """
    if "gradients" not in predictor.gives:
        raise NotApplicable("the predictor gives no gradients")
    with torch.enable_grad():
        point = inputs.detach().requires_grad_()
        logits = predictor(point)
        if not logits.requires_grad:
            raise NotApplicable("the predictor's output is detached from its input, so there is no gradient to climb")
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
    return gradient.nan_to_num_(0.0), logits.detach()


def zero_share(gradient: Float[Tensor, "batch 3 height width"]) -> Float[np.ndarray, " batch"]:
    """Return the share of exactly zero entries of each sample: near 1, an attack's failure says nothing."""
    entries = gradient[0].numel() if len(gradient) else 1
    return 1 - torch.count_nonzero(gradient, dim=(1, 2, 3)).cpu().numpy() / entries
