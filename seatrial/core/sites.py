"""Names of the places in a graph where a number can be rounded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from seatrial.core.graph import Graph, module_path
from seatrial.errors import BadInput

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_SITE = re.compile(
    rf"(?P<path>.*)/(?P<op>[^/#:]+)#(?P<index>{_NUMBER}):(?P<port>output|weight|bias|input{_NUMBER})", re.DOTALL
)


@dataclass(frozen=True, order=True)
class Site:
    """A port of an operator: `blocks.3.attn.qkv/linear#0:input0`.

    `port` is `output`, `weight`, `bias` or `inputN`; `index` counts operators of one kind in one module.
    """

    path: str
    op: str
    index: int
    port: str

    def __str__(self) -> str:
        return f"{self.operator}:{self.port}"

    @property
    def operator(self) -> str:
        """The operator's name without the port."""
        return f"{self.path}/{self.op}#{self.index}"

    @staticmethod
    def parse(text: str) -> Site:
        """Read a site as it prints; raises BadInput for another text."""
        match = _SITE.fullmatch(text)
        if match is None:
            raise BadInput(f"site '{text}'", "PATH/OP#N:PORT", "see `seatrial quantize --json`")
        return Site(match["path"], match["op"], int(match["index"]), match["port"])


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Return the dimensions of a value as captured, () where they are not known."""
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def op_name(node: fx.Node) -> str:
    """Return the ATen name of a node without namespace and overload: `conv2d`, `add`, `placeholder`."""
    if node.op != "call_function":
        return node.op
    name = getattr(node.target, "name", None)
    if callable(name):
        return str(name()).split("::")[-1].split(".")[0]
    return getattr(node.target, "__name__", str(node.target))


def operators(graph: Graph) -> dict[str, fx.Node]:
    """Return every operator and placeholder by name, in execution order."""
    seen: Counter[tuple[str, str]] = Counter()
    named: dict[str, fx.Node] = {}
    holders = iter(graph.inputs)
    for node in graph.module.graph.nodes:
        if node.op not in ("call_function", "placeholder"):
            continue
        path = next(holders).name if node.op == "placeholder" else module_path(node)
        key = (path, op_name(node))
        named[f"{path}/{key[1]}#{seen[key]}"] = node
        seen[key] += 1
    return named


def site_of(name: str, port: str) -> Site:
    """Return the site for a port of an operator named as by `operators`."""
    return Site.parse(f"{name}:{port}")


def signature(graph: Graph) -> tuple[str, ...]:
    """Return one line for each operator with the shapes of the parameters it reads: what a recipe is tied to."""
    lines = []
    for name, node in operators(graph).items():
        shapes = []
        for argument in node.all_input_nodes:
            if argument.op == "get_attr":
                shapes.append("x".join(str(dim) for dim in attribute(graph.module, str(argument.target)).shape))
        lines.append(name + ("(" + ",".join(shapes) + ")" if shapes else ""))
    return tuple(lines)


def attribute(module: fx.GraphModule, target: str) -> Tensor:
    """Return the parameter or buffer that a `get_attr` node names; raises BadInput where it is no tensor."""
    value: object = module
    for part in target.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise BadInput(f"'{target}' of type {type(value).__name__}", "a parameter or buffer", "export the model again")
    return value
