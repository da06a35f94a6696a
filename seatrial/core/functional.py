"""From an exported program to a functional graph: no in-place operators, dropout, guards or demands on layout."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen

from seatrial.errors import BadInput

_IDENTITIES = {"aten::alias", "aten::alias_", "aten::detach", "aten::detach_"}
_DROPOUTS = {"aten::dropout", "aten::dropout_", "aten::feature_dropout", "aten::feature_dropout_"}
_INFERENCE_NORM = "aten::_native_batch_norm_legit_no_training"


def functional_module(program: ExportedProgram) -> fx.GraphModule:
    """Return a program as a module of functional operators with flat inputs and one tensor as output.

    Parameters are shared with the program; what no operator reads is left out. Raises BadInput where the first
    output is not a tensor.
    """
    module = _flat(program)
    if not _functionalize(module.graph):
        # A view is written to, or looked at after a write through another name: torch's own functionalization knows.
        module = _flat(program.run_decompositions({}))
        _restore_batch_norms(module.graph)
        if not _functionalize(module.graph):
            raise BadInput("a program that writes to views", "functional operators", "export it without them")
    _loosen_views(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return fx.GraphModule(module, module.graph)


def _flat(program: ExportedProgram) -> fx.GraphModule:
    """Return the program's module without guards, with positional inputs and the first output alone."""
    module = program.module(check_guards=False)
    module.graph.set_codegen(CodeGen())  # instead of the exported pytrees
    output = next(node for node in module.graph.nodes if node.op == "output")
    while isinstance(output.args[0], list | tuple) and output.args[0]:
        output.args = (output.args[0][0],)
    if not isinstance(output.args[0], fx.Node):
        raise BadInput(
            f"a model with output {output.args[0]}", "a tensor as the first output", "wrap it so that it returns one"
        )
    return module


def _schema_name(node: fx.Node) -> str:
    name = getattr(node.target, "name", None)
    return str(name()) if node.op == "call_function" and callable(name) else ""


def _functionalize(graph: fx.Graph) -> bool:
    """Make in-place operators functional, remove dropout and aliases; False where writes go through views."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    storage: dict[fx.Node, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in list(graph.nodes):
        name = _schema_name(node)
        if name in _IDENTITIES or (name in _DROPOUTS and node.args[2] is False):
            node.replace_all_uses_with(_first(node))
            graph.erase_node(node)
            continue
        plain = _functional_form(node, name)
        owner = _first(node) if plain is not None or _is_view(node) else None
        storage[node] = storage.get(owner, owner) if owner is not None else node
        others = sharing.setdefault(storage[node], [])
        if plain is not None and owner is not None:
            elsewhere = [other for other in others if other is not owner]
            if any(order[user] > order[node] for other in elsewhere for user in other.users) or _promotes(node):
                return False
            node.target = plain
            for user in [user for user in owner.users if order[user] > order[node]]:
                user.replace_input_with(owner, node)
        elif _writes(node):
            return False
        others.append(node)
    return True


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    if not isinstance(first, fx.Node):
        raise BadInput(f"operator {node.target} of {first}", "a tensor as its first argument", "export the model again")
    return first


def _functional_form(node: fx.Node, name: str) -> OpOverload | None:
    """Return the operator that computes what an in-place operator writes, None for any other."""
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    if not (name.startswith("aten::") and packet.endswith("_") and not packet.endswith("__")):
        return None
    plain = getattr(torch.ops.aten, packet.removesuffix("_"), None)
    return getattr(plain, overload) if plain is not None and overload in plain.overloads() else None


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments
    )


def _is_view(node: fx.Node) -> bool:
    """Tell whether a node may share memory with the tensor it reads first."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return schema.arguments[0].alias_info is not None and not schema.arguments[0].alias_info.is_write


def _promotes(node: fx.Node) -> bool:
    """Tell whether the functional form could have another type or shape than the tensor that is written to."""
    values = [value.meta.get("val") for value in node.all_input_nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    into = tensors[0] if tensors else None
    return into is not None and any(
        (value.dtype.is_floating_point and value.dtype != into.dtype) or value.ndim > into.ndim for value in tensors[1:]
    )


def _loosen_views(graph: fx.Graph) -> None:
    """Write views as `reshape`, which takes tensors of any memory layout; nothing writes through them any more."""
    for node in graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default


def _restore_batch_norms(graph: fx.Graph) -> None:
    """Write decomposed batch norms as `batch_norm` again, so that folding and migration find them."""
    for node in list(graph.nodes):
        if _schema_name(node) != _INFERENCE_NORM:
            continue
        value, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            arguments = (value, weight, bias, mean, variance, False, momentum, eps, False)
            whole = graph.call_function(torch.ops.aten.batch_norm.default, arguments)
        for part in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
            whole.meta = dict(part.meta)
            part.replace_all_uses_with(whole)
            graph.erase_node(part)
