"""What an operator is to the placement of rounds: weighted, a product, a gate, and what it reads."""

from __future__ import annotations

from torch import fx

from seatrial.core.carrying import CARRIES, carries
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name, shape_of
from seatrial.quant.channel_groups import conv_groups

CONVOLUTIONS = {"conv2d", "conv_transpose2d", "conv1d"}
WEIGHTED = {"linear", *CONVOLUTIONS}
CLIPS = {"relu", "relu6", "hardtanh"}
"""Activations that a convolution computes in its round."""
ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "elu", "hardswish", "hardsigmoid"),
    *("sigmoid", "silu", "gelu", "mish", "tanh"),
}
POOLS = {"mean", "adaptive_avg_pool2d", "avg_pool2d"}
PRODUCTS = {"matmul", "bmm"}
"""Activation by activation: the products of an attention."""
SOFTMAX = {"softmax", "_softmax"}
_MOVES = {"expand", "repeat", "select", "unbind", "split", "chunk", "getitem", "roll", "dropout", "alias", "detach"}


def is_parameter(argument: object) -> bool:
    """Tell whether an argument is a constant of the graph."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def rank(node: fx.Node) -> int:
    """Return the number of dimensions, -1 where it is not known."""
    return len(shape_of(node)) if "val" in node.meta else -1


def activations_read(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that an operator reads, without constants."""
    return [value for value in tensor_inputs(node) if value.op != "get_attr"]


def origin(node: fx.Node) -> fx.Node:
    """Return the operator that computed a value, behind activations and operators that carry values on."""
    while op_name(node) in CARRIES | ACTIVATIONS | {"cat", "batch_norm"}:
        read = activations_read(node)
        if not read:
            return node
        node = read[0]
    return node


def moves(node: fx.Node) -> bool:
    """Tell whether an operator gives values of the tensor that it reads: all, some or some again, and zeros."""
    return carries(node) or op_name(node) in _MOVES


def computed_by(node: fx.Node) -> fx.Node:
    """Return the operator that computed a value, behind those that only move values."""
    while moves(node):
        node = node.all_input_nodes[0]
    return node


def is_gate(node: fx.Node) -> bool:
    """Tell whether a tensor holds one value a channel of a picture: the gate of a squeeze-and-excite branch."""
    shape = shape_of(node)
    return len(shape) == 4 and shape[2] == 1 and shape[3] == 1


def is_depthwise(node: fx.Node) -> bool:
    """Tell whether a convolution has one input channel for each output channel."""
    weight = node.args[1]
    shape = shape_of(weight) if isinstance(weight, fx.Node) else ()
    return conv_groups(node) > 1 and len(shape) == 4 and shape[1] == 1


def before_softmax(node: fx.Node) -> bool:
    """Tell whether a product gives the scores of an attention: a softmax follows within six operators."""
    for _ in range(6):
        users = list(node.users)
        if any(op_name(user) in SOFTMAX for user in users):
            return True
        follow = [
            user for user in users if op_name(user) in ("add", "mul", "div", "view", "masked_fill", "where", "to")
        ]
        if not follow:
            return False
        node = follow[0]
    return False


def after_relu(node: fx.Node) -> fx.Node:
    """Return the clipping activation that alone reads a value, else the value itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) in CLIPS else node
