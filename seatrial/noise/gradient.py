"""The gradient that white-box attacks climb, and whether there is one."""

from __future__ import annotations

from collections.abc import Callable

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
    """Return the gradient of the cross entropy by `inputs`, and the logits; as `objective_gradient` does."""
    gradient, logits, _ = objective_gradient(predictor, inputs, lambda z: F.cross_entropy(z, labels, reduction="none"))
    return gradient, logits


def objective_gradient(
    predictor: Predictor,
    inputs: Float[Tensor, "batch 3 height width"],
    objective: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, "batch classes"], Float[Tensor, " batch"]]:
    """Return the gradient by `inputs` of `objective` (logits to a value a sample), the logits, and the values.

    The sum keeps a sample's gradient independent of the size of the batch. Gradients of parameters are neither
    computed nor stored. An entry that is not a number (half precision overflows) is given as 0. Raises NotApplicable
    where the predictor gives no gradient.
    """
    if "gradients" not in predictor.gives:
        raise NotApplicable(
            "the predictor gives no gradients; square, which needs scores, and hopskipjump, by labels, would work"
        )
    with torch.enable_grad():
        point = inputs.detach().requires_grad_()
        logits = predictor(point)
        if not logits.requires_grad:
            raise NotApplicable("the predictor's output is detached from its input, so there is no gradient to climb")
        values = objective(logits)
        (gradient,) = torch.autograd.grad(values.sum(), point)
    # Convolutions may give it channels last; what attacks do with it and the inputs is faster in one layout.
    return gradient.contiguous().nan_to_num_(0.0), logits.detach(), values.detach()


def zero_share(gradient: Float[Tensor, "batch 3 height width"]) -> Float[np.ndarray, " batch"]:
    """Return the share of exactly zero entries of each sample: near 1, an attack's failure says nothing."""
    entries = gradient[0].numel() if len(gradient) else 1
    return 1 - torch.count_nonzero(gradient, dim=(1, 2, 3)).cpu().numpy() / entries
