"""Parameters and buffers that operators of a graph read, looked up and exchanged on a graph copy."""

from __future__ import annotations

from torch import Tensor, fx

from seatrial.core.graph import free_name
from seatrial.core.sites import attribute


def parameter_at(module: fx.GraphModule, node: fx.Node, index: int) -> Tensor | None:
    """Return the parameter or buffer that a node reads as its argument `index`, detached; None for anything else."""
    argument = node.args[index] if len(node.args) > index else None
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    return attribute(module, str(argument.target)).detach()


def constant(module: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """Add a buffer under a free name like `name` and the node that reads it, in front of `before`."""
    name = free_name(module, name)
    module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def set_constant(module: fx.GraphModule, node: fx.Node, index: int, value: Tensor, name: str) -> None:
    """Let a node read a new buffer as its argument `index`; arguments that were left out become None."""
    arguments = list(node.args) + [None] * (index + 1 - len(node.args))
    arguments[index] = constant(module, name, value, node)
    node.args = tuple(arguments)
