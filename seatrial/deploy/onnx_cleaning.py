"""Readable names and nothing else: what the exporter knows about a machine does not go into the file."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from seatrial.core.graph import Graph
from seatrial.deploy.onnx_constants import plain_path

_SCOPES = "pkg.torch.onnx.name_scopes"
_PRODUCER = "seatrial"


def clean(graph: Graph, model: ir.Model) -> None:
    """Name nodes by module and operator, inputs and dimensions like `graph`'s, the output `output`; in place.

    Stack traces, source paths, inferred shapes and everything else that the exporter remembers is removed.
    """
    main = model.graph
    _name_nodes(main)
    symbols = _name_inputs(graph, main)
    _name_values(main)
    (output,) = main.outputs[:1]
    output.name = "output"
    if output.shape is not None:
        output.shape = ir.Shape([_dim(dim, symbols, i) for i, dim in enumerate(output.shape)])
    del main.outputs[1:]
    kept = {id(value) for value in [*main.inputs, *main.outputs]}
    for node in main:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:  # inferred shapes carry the exporter's symbols; runtimes infer their own
                value.shape, value.type = None, None
    for value in [*main.inputs, *main.initializers.values()]:
        value.metadata_props.clear()
    for owner in (model, main):
        owner.metadata_props.clear()
        owner.doc_string = None
    main.name = "model"
    model.producer_name, model.producer_version, model.domain = _PRODUCER, None, None


def _name_nodes(main: ir.Graph) -> None:
    seen: Counter[str] = Counter()
    for node in main:
        path, kind = "", node.op_type
        scopes = node.metadata_props.get(_SCOPES)
        if scopes:
            parts = [str(part) for part in ast.literal_eval(scopes)]
            path = plain_path(parts[-2]) if len(parts) > 1 else ""
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear", "Clip", "Cast") and node.inputs[0] is not None:
            path = plain_path(str(node.inputs[0].name))
        name = f"{path}/{kind}" if path else kind
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def _name_inputs(graph: Graph, main: ir.Graph) -> dict[str, str]:
    """Name inputs and their dynamic dimensions; return the exporter's symbols with their new names."""
    symbols: dict[str, str] = {}
    for value, spec in zip(main.inputs, graph.inputs, strict=True):
        assert value.shape is not None
        for old, new in zip(value.shape, spec.shape, strict=True):
            if isinstance(new, str) and not isinstance(old, int):
                symbols.setdefault(str(old.value), new)
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    return symbols


def _name_values(main: ir.Graph) -> None:
    """Drop the wrapper's prefix from the names of parameters."""
    taken = {value.name for value in [*main.inputs, *(out for node in main for out in node.outputs)]}
    for name, value in list(main.initializers.items()):
        plain = plain_path(name)
        if plain != name and plain not in taken and plain not in main.initializers:
            value.name = plain


def _dim(dim: int | ir.SymbolicDim, symbols: dict[str, str], index: int) -> int | str:
    if isinstance(dim, int):
        return dim
    return symbols.get(str(dim.value), "batch" if index == 0 else f"dim{index}")
