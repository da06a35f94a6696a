"""The nearest point of a plane within the box, in L-inf."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def nearest_on_plane(
    points: Float[Tensor, "batch entries"], normals: Float[Tensor, "batch entries"], offsets: Float[Tensor, " batch"]
) -> Float[Tensor, "batch entries"]:
    """Return the change of least L-inf norm that brings each point in [0, 1] onto normal . x = offset, kept in [0, 1].

    Where the box does not reach the plane, every entry goes as far towards it as the box allows. Source: Croce and
    Hein 2020 (arXiv 1907.02044), appendix A: all entries change by one amount or up to the wall.
    """
    wanted = offsets - (normals * points).sum(1)
    direction = normals.sign() * wanted.sign()[:, None]
    room = torch.where(direction > 0, 1 - points, points)
    weight = normals.abs()
    ordered, order = room.sort(dim=1)
    weights = weight.gather(1, order).double()
    walls = ordered.double()
    # With amount t, entries whose wall stands before t give weight * wall, the others weight * t.
    before = (weights * walls).cumsum(1)
    beyond = weights.sum(1, keepdim=True) - weights.cumsum(1)
    reached = before + walls * beyond
    need = wanted.abs().double()[:, None]
    index = torch.searchsorted(reached, need).clamp(max=points.shape[1] - 1)
    earlier = torch.where(index > 0, before.gather(1, (index - 1).clamp(min=0)), torch.zeros_like(need))
    rest = beyond.gather(1, index) + weights.gather(1, index)
    amount = (need - earlier) / rest.clamp(min=1e-30)
    amount = torch.where(need > reached[:, -1:], walls[:, -1:], amount).to(points.dtype)
    return direction * torch.minimum(room, amount)
