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
    negative, else signed around zero."""
    operator_outputs: bool
    """Rounds also on the outputs of convolutions, products and sums (ONNX Runtime fuses only between two rounds)."""
    residual_adds: bool = True
    pooling: bool = True
    gates: bool = True
    """Squeeze-and-excite: both inputs of the product, the pooled mean and the gate's output."""
    attention_products: Literal["none", "query-key", "all"] = "none"
    """Which activation-by-activation matrix products get rounded inputs."""
    weight_bits_cap: int = 8
    """7 where 8-bit kernels saturate (x86 without VNNI)."""
