"""Rounds to grids that no integer kernel reads: per token or group, logarithmic, twin. All are one operator each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

ROUNDS = frozenset({"qdq", "narrow_float", "dynamic_qdq", "grouped_qdq", "logarithmic_qdq", "twin_qdq"})
"""The names of all operators that round."""


def in_groups(x: Tensor, group: int) -> Tensor:
    """Return [..., groups, group]: the last axis in runs of `group` values, the last filled up with zeros."""
    short = -x.shape[-1] % group
    return (pad(x, (0, short)) if short else x).unflatten(-1, (-1, group))


def _together(x: Tensor, like: Tensor) -> Tensor:
    return x.flatten(-2)[..., : like.shape[-1]]


def round_dynamic(x: Tensor, bits: int, symmetric: bool, group: int) -> Tensor:
    """Round each row of the last axis, or each `group` values of it (0: all), to an affine grid of its own range."""
    rows = in_groups(x, group) if group else x
    low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(min=0)
    least = torch.finfo(torch.float32).tiny
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = (torch.maximum(-low, high) / top).clamp(min=least)
        rounded = (rows / scale).round().clamp(-top, top) * scale
    else:
        top = 2**bits - 1
        scale = ((high - low) / top).clamp(min=least)
        zero = (-low / scale).round()
        rounded = ((rows / scale).round() + zero).clamp(0, top).sub(zero) * scale
    return _together(rounded, x) if group else rounded


def round_grouped(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, group: int) -> Tensor:
    """Round x [rows, columns] to one affine grid for each run of `group` columns; scale, zero_point [rows, groups]."""
    codes = grouped_codes(x, scale, zero_point, bits, group)
    return _together((codes - zero_point[..., None].to(x.dtype)) * scale[..., None].to(x.dtype), x)


def grouped_codes(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, group: int) -> Tensor:
    """Return [rows, groups, group]: the codes, whole numbers of x's type, of what `round_grouped` gives."""
    ratio = (in_groups(x, group) / scale[..., None].to(x.dtype)).round()
    return (ratio + zero_point[..., None].to(x.dtype)).clamp(0, 2**bits - 1)


def round_logarithmic(x: Tensor, scale: Tensor, bits: int, steps: int) -> Tensor:
    """Round to scale * 2 ** (-code / steps); what is less than half a step above the last code, or below it, is 0."""
    codes = (torch.log2(x / scale).neg() * steps).round().clamp(min=0)
    return torch.where(codes < 2**bits, scale * torch.exp2(-codes / steps), torch.zeros_like(x))


def round_twin(x: Tensor, fine: Tensor, coarse: Tensor, bits: int, by_sign: bool) -> Tensor:
    """Round to one of two uniform grids, by sign or by size; see `seatrial.core.grids.Twin`."""
    half = 2 ** (bits - 1)
    on_coarse = (x / coarse).round().clamp(0, half - 1) * coarse
    if by_sign:
        return torch.where(x < 0, (x / fine).round().clamp(-half, 0) * fine, on_coarse)
    on_fine = (x / fine).round().clamp(0, half - 1) * fine
    return torch.where(x < fine * (half - 1), on_fine, on_coarse)


@torch.library.custom_op("seatrial::dynamic_qdq", mutates_args=())
def dynamic_qdq(x: Tensor, bits: int, symmetric: bool, group: int) -> Tensor:
    """`round_dynamic` with a straight-through gradient."""
    return round_dynamic(x, bits, symmetric, group).contiguous()


@torch.library.custom_op("seatrial::grouped_qdq", mutates_args=())
def grouped_qdq(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, group: int) -> Tensor:
    """`round_grouped` with a straight-through gradient."""
    return round_grouped(x, scale, zero_point, bits, group).contiguous()


@torch.library.custom_op("seatrial::logarithmic_qdq", mutates_args=())
def logarithmic_qdq(x: Tensor, scale: Tensor, bits: int, steps: int) -> Tensor:
    """`round_logarithmic` with a gradient that passes where the value is not above the scale."""
    return round_logarithmic(x, scale, bits, steps)


@torch.library.custom_op("seatrial::twin_qdq", mutates_args=())
def twin_qdq(x: Tensor, fine: Tensor, coarse: Tensor, bits: int, by_sign: bool) -> Tensor:
    """`round_twin` with a gradient that passes between the ends of the two grids."""
    return round_twin(x, fine, coarse, bits, by_sign)


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *grid = inputs
    ctx.rest = len(grid)
    ctx.bits, ctx.last = grid[-2:]
    ctx.save_for_backward(x, *[part for part in grid if isinstance(part, Tensor)])


def _through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, *[None] * ctx.rest


def _through_logarithmic(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale = ctx.saved_tensors
    return gradient * (x <= scale), *[None] * ctx.rest


def _through_twin(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, fine, coarse = ctx.saved_tensors
    half = 2 ** (ctx.bits - 1)
    inside = (x <= coarse * (half - 1)) & (x >= (-fine * half if ctx.last else torch.zeros_like(fine)))
    return gradient * inside, *[None] * ctx.rest


for _operator, _backward in (
    (dynamic_qdq, _through),
    (grouped_qdq, _through),
    (logarithmic_qdq, _through_logarithmic),
    (twin_qdq, _through_twin),
):
    _operator.register_fake(_empty)
    _operator.register_autograd(_backward, setup_context=_remember)
