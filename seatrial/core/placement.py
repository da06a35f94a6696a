"""Where rounds should stand so that a runtime's integer kernels run: the rules, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PlacementRules:
    """What a runtime wants; `seatrial.quant.placement` turns it into sites of a graph.

    Measured rules: docs/decisions/0002-placement.md.
    """

    name: str
    activation_sign: Literal["unsigned", "by-range"]
    """`unsigned`: uint8 with any zero point everywhere. `by-range`: unsigned from zero up where the range is not
    negative, else as `seatrial.numerics.ranges.grid_for` decides; never signed with a zero point that is not 0."""
    operator_outputs: bool
    """Rounds also on the outputs of convolutions, products and sums (ONNX Runtime fuses only between two rounds)."""
    residual_adds: bool = True
    pooling: bool = True
    gates: bool = True
    """Squeeze-and-excite: both inputs of the product, the pooled mean and the gate's output."""
    attention_products: Literal["none", "query-key", "all"] = "none"
    """Which activation-by-activation matrix products get rounded inputs."""
    linear_sign: Literal["unsigned", "by-range"] = "by-range"
    """The sign of what linear operators alone read. VNNI multiplies u8 by s8: signed activations cost a correction."""
    products_around_zero: bool = False
    """Inputs of activation-by-activation products get zero point 0, signed or not by range: with another zero point
    the product runs in float."""
    weight_bits_cap: int = 8
    """7 where 8-bit kernels of dense products saturate (x86 without VNNI)."""
