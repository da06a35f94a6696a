"""Our custom operators: values on a grid or in a narrow float type, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SLACK = 1e-3
"""Steps by which a value at the end of a grid may lie beyond it: its scale was rounded."""


def shaped(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return one value per channel in the shape that broadcasts over `x` along `axis`; a scalar as it is (axis -1)."""
    if axis < 0:
        return values
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _wide(x: Tensor) -> torch.dtype:
    """Return the type to compute in: codes of 8 bits and more do not fit the mantissa of a narrow float."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _ratio_and_zero(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x / scale, the scale and the zero point, the latter two shaped to broadcast."""
    wide = _wide(x)
    divisor, zero = shaped(scale, x, axis).to(wide), shaped(zero_point, x, axis).to(wide)
    return torch.div(x.to(wide), divisor), divisor, zero


@torch.library.custom_op("seatrial::qdq", mutates_args=())
def qdq(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
    """Round `x` to the affine integer grid and back: scale * (clamp(round(x / scale) + zero_point) - zero_point).

    x: any shape; scale, zero_point: scalars (axis -1) or one value per channel along `axis`; codes run from `low`
    to `high`. Rounds half to even, as ONNX QuantizeLinear does. Computed in float32 (float64 for float64), given in
    the type of `x`. The gradient passes through where `x` lies between the ends of the grid, not where it is clamped
    to them (as torch's fake quantization lets it, half a step further); scale receives the gradient of LSQ, without
    its factor 1 / sqrt(N * high).

    Source: Jacob et al. 2018, eq. 1; gradient: Bengio et al. 2013 (straight-through), Esser et al. 2020, eq. 3 and 5.
    Departures: what lies beyond an end by less than a thousandth of a step counts as inside, since a scale is itself
    rounded.
    """
    ratio, divisor, zero = _ratio_and_zero(x, scale, zero_point, axis)
    return ratio.round_().add_(zero).clamp_(low, high).sub_(zero).mul_(divisor).to(x.dtype)


@qdq.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
    return torch.empty_like(x)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.low, ctx.high, ctx.axis = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point = ctx.saved_tensors
    ratio, _, zero = _ratio_and_zero(x, scale, zero_point, ctx.axis)
    # In place where it can be: these passes over memory are a third of a training step.
    kept = ratio.round().add_(zero).clamp_(ctx.low, ctx.high)
    placed = ratio.add(zero)
    # 0 or 1, which multiplies faster than a mask selects
    inside = placed.clamp(ctx.low - _SLACK, ctx.high + _SLACK).eq_(placed)
    by_scale = None
    if ctx.needs_input_grad[1]:
        # The code less the value inside, the end of the range where it was clamped.
        steps = kept.sub_(zero).sub_(ratio.mul_(inside)).mul_(gradient)
        by_channel = steps.sum() if ctx.axis < 0 else steps.movedim(ctx.axis, 0).reshape(len(scale), -1).sum(1)
        by_scale = by_channel.reshape(scale.shape).to(scale.dtype)
    return inside.to(gradient.dtype).mul_(gradient), by_scale, None, None, None, None


qdq.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op("seatrial::narrow_float", mutates_args=())
def narrow_float(x: Tensor, kind: str) -> Tensor:
    """Round `x` to `bf16` or `fp16` and back to its own type, with a straight-through gradient."""
    # A copy even where nothing changes: an operator's output must not be its input.
    return x.to({"bf16": torch.bfloat16, "fp16": torch.float16}[kind], copy=True).to(x.dtype)


@narrow_float.register_fake
def _(x: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x)


narrow_float.register_autograd(lambda ctx, gradient: (gradient, None), setup_context=lambda ctx, inputs, output: None)
