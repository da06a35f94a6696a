"""How the weights of 2-d convolutions lie in memory."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay 4-d parameters and buffers out in place; with channels last, convolutions run faster on CPUs.

    torch then hands activations on channels last as well, whatever the layout of the inputs.
    """
    for value in chain(module.parameters(), module.buffers()):
        if value.ndim == 4:
            value.data = value.data.contiguous(memory_format=layout)
