"""Operators that pass values on unchanged: a round before them holds behind them too."""

from __future__ import annotations

from torch import fx

from seatrial.core.sites import op_name

_MOVES = {"view", "reshape", "_unsafe_view", "transpose", "permute", "contiguous", "clone", "squeeze", "unsqueeze"}
CARRIES = {"max_pool2d", "flatten", "slice", "pad", "constant_pad_nd", "upsample_nearest2d", *_MOVES}
"""Names of the operators; a pad with another value than zero is none of them, see `carries`."""


def carries(node: fx.Node) -> bool:
    """Tell whether the values of `node` are those of the tensor that it reads, and zeros."""
    return op_name(node) in CARRIES and not _pads_nonzero(node)


def _pads_nonzero(node: fx.Node) -> bool:
    if op_name(node) not in ("pad", "constant_pad_nd"):
        return False
    values = [argument for argument in node.args[2:] if isinstance(argument, int | float)]
    return any(values) or any(isinstance(argument, str) and argument != "constant" for argument in node.args[2:])
