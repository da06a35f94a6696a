"""The captured graph: one representation for quantizing, attacking, measuring and exporting."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from seatrial.core.functional import functional_module
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.witness import Witness, quiet
from seatrial.errors import BadInput

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_PREFIX = "inner"


@dataclass(frozen=True)
class TensorSpec:
    """One input of a graph: a dimension is a number, or the name of a symbol where it is dynamic."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Graph:
    """A `torch.fx.GraphModule` of ATen operators with its inputs; nothing changes it in place.

    Vision graphs take float32 NCHW RGB in [0, 1]: normalization is their first nodes.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]

    def example(self, batch: int = 2, length: int = 8) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes: the first symbol is the batch, others take `length`."""
        sizes: dict[str, int] = {}
        tensors = []
        for spec in self.inputs:
            for dim in spec.shape:
                if isinstance(dim, str):
                    sizes.setdefault(dim, length if sizes else batch)
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
            dtype = _DTYPES[spec.dtype]
            tensors.append(torch.full(shape, 0.5 if dtype.is_floating_point else 1, dtype=dtype))
        return tuple(tensors)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions, the batch first."""
        return tuple(dict.fromkeys(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)))

    @property
    def input_size_px(self) -> tuple[int, int]:
        """Height and width of a vision graph's input; raises BadInput for other graphs."""
        shape = self.inputs[0].shape
        if len(self.inputs) == 1 and len(shape) == 4 and isinstance(shape[2], int) and isinstance(shape[3], int):
            return shape[2], shape[3]
        raise BadInput(
            f"a graph with inputs {self.inputs}", "one picture input [batch, 3, H, W]", "pass a vision model"
        )

    def nodes(self) -> list[fx.Node]:
        """Return the nodes in execution order."""
        return list(self.module.graph.nodes)


@dataclass(frozen=True)
class GraphPredictor(Predictor):
    """A graph run by PyTorch; differentiable unless `arithmetic` asks for a narrower float type."""

    graph: Graph
    device: str = "cpu"
    arithmetic: str = "as-is"

    @property
    def gives(self) -> frozenset[Gift]:
        return frozenset({"gradients", "logits", "labels"})

    def __call__(self, inputs: Inputs) -> Tensor:
        tensors = [inputs] if isinstance(inputs, Tensor) else [inputs[spec.name] for spec in self.graph.inputs]
        tensors = [tensor.to(self.device) for tensor in tensors]
        if self.arithmetic == "as-is":
            return self.graph.module(*tensors)
        # Mixed precision as deployments do it: convolutions and matrix products narrow, reductions wide.
        narrow = torch.bfloat16 if self.arithmetic == "bf16" else torch.float16
        with torch.autocast(self.device.split(":")[0], dtype=narrow):
            return tree_map(widened, self.graph.module(*tensors))


def widened(value: Any) -> Any:
    """Return a tensor of a narrow float type as float32, anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Flat(nn.Module):
    """Positional tensors in, one tensor out, around any module."""

    def __init__(self, inner: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.names is None:
            return _main_output(self.inner(*tensors))
        return _main_output(self.inner(**dict(zip(self.names, tensors, strict=True))))


def _main_output(out: Any) -> Any:
    """Return the tensor that answers the question, out of what transformers, torchvision and timm return."""
    for name in ("logits", "last_hidden_state", "out"):
        if hasattr(out, name):
            return getattr(out, name)
        if isinstance(out, Mapping) and name in out:
            return out[name]
    return out[0] if isinstance(out, list | tuple) else out


def prepared_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose attention is visible: timm's and transformers' fused kernels are off."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  (not an attribute of every module)
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"  # pyright: ignore[reportOptionalMemberAccess]
        if hasattr(config, "use_cache"):
            config.use_cache = False  # pyright: ignore[reportOptionalMemberAccess]
    return twin


def capture(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    normalization: Normalization | None = None,
) -> Graph:
    """Export a copy of `model` in eval mode to a graph with dynamic batch (and sequence length, for token inputs).

    `example` is a float32 picture batch [batch, 3, height, width] in [0, 1] with batch >= 2, or named tensors
    [batch, length] for language models. The model itself is not changed. Raises BadInput that names the operator
    and the module where the export failed.

    Source: the training IR of `torch.export`. Departures: in-place operators become functional ones and dropout is
    removed, so that a round can stand on every edge.
    """
    named = isinstance(example, Mapping)
    # Copies, because torch.export takes one tensor that is passed twice for one input.
    tensors = tuple(t.detach().clone() for t in (example.values() if isinstance(example, Mapping) else (example,)))
    names = tuple(example) if isinstance(example, Mapping) else None
    dynamic = [tuple(range(tensor.ndim)) if named else (0,) for tensor in tensors]
    if any(tensor.shape[dim] < 2 for tensor, dims in zip(tensors, dynamic, strict=True) for dim in dims):
        # torch.export takes a size of 0 or 1 for a constant.
        shown = [tuple(tensor.shape) for tensor in tensors]
        raise BadInput(f"an example of shape {shown}", "at least 2 along dynamic dimensions", "pass a larger batch")
    try:
        flat = _Flat(prepared_copy(model), names).eval()
    except Exception as error:  # copying raises what the model's own code raises
        raise BadInput(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {_one_line(error)})",
            "a module that copy.deepcopy copies",
            "keep handles, locks and computed tensors out of its attributes",
        ) from error
    shapes = tuple(dict.fromkeys(dims, Dim.DYNAMIC) for dims in dynamic)
    witness = Witness(flat.inner)
    try:
        with quiet(), witness, torch.no_grad():
            program = torch.export.export(flat, tensors, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export raises what the model's own code raises
        operator, module = witness.operator_and_module
        raise BadInput(
            f"the export of {type(model).__name__} failed at operator '{operator}' in module "
            f"'{module or type(model).__name__}' ({type(error).__name__}: {_one_line(error)})",
            "a model that torch.export can capture",
            "rewrite that module without data-dependent control flow, or pass a .onnx file of it",
        ) from error
    finally:
        witness.remove()
    return from_program(program, names=names, normalization=normalization)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def from_program(
    program: ExportedProgram, *, names: Sequence[str] | None = None, normalization: Normalization | None = None
) -> Graph:
    """Return the graph of an exported program, functional and cleaned; `names` rename its inputs."""
    module = functional_module(program)
    inputs: list[TensorSpec] = []
    symbols: dict[str, str] = {}
    holders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for i, node in enumerate(holders):
        value = node.meta["val"]
        for dim in value.shape:
            if not isinstance(dim, int):
                symbols.setdefault(str(dim), "length" if symbols else "batch")
        # torch may give each input its own batch symbol; the first dimension is the batch all the same.
        shape = tuple(
            dim if isinstance(dim, int) else "batch" if axis == 0 else symbols[str(dim)]
            for axis, dim in enumerate(value.shape)
        )
        name = names[i] if names else "image" if len(holders) == 1 and len(shape) == 4 else node.name
        inputs.append(TensorSpec(name, shape, str(value.dtype).removeprefix("torch.")))
    graph = Graph(module, tuple(inputs))
    return with_normalization(graph, normalization) if normalization else graph


def with_normalization(graph: Graph, normalization: Normalization) -> Graph:
    """Return a graph whose first nodes subtract the mean and divide by the standard deviation."""
    new = copied(graph)
    module = new.module
    holder = next(node for node in module.graph.nodes if node.op == "placeholder")
    users, dtype = list(holder.users), holder.meta["val"].dtype
    with module.graph.inserting_after(holder):
        scaled = holder
        for name, op in (("mean", torch.ops.aten.sub.Tensor), ("std", torch.ops.aten.div.Tensor)):
            value = torch.tensor(getattr(normalization, name), dtype=dtype).reshape(1, -1, 1, 1)
            buffer = free_name(module, f"normalize_{name}")
            module.register_buffer(buffer, value)
            with module.graph.inserting_after(scaled):
                constant = module.graph.get_attr(buffer)
            constant.meta["val"] = value
            with module.graph.inserting_after(constant):
                scaled = module.graph.call_function(op, (scaled, constant))
            scaled.meta = {"val": holder.meta["val"], "nn_module_stack": {"normalize": ("normalize", "Normalize")}}
    for user in users:
        user.replace_input_with(holder, scaled)
    return finished(new)


def copied(graph: Graph) -> Graph:
    """Return a graph with its own nodes that shares parameters with the original."""
    module = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
    module.eval()
    return Graph(module, graph.inputs)


def free_name(module: nn.Module, name: str) -> str:
    """Return `name`, numbered where the module has an attribute of that name already."""
    number, free = 1, name
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    return free


def finished(graph: Graph) -> Graph:
    """Check an edited copy and return it without the parameters and submodules that it no longer uses."""
    graph.module.graph.lint()
    return Graph(fx.GraphModule(graph.module, graph.module.graph), graph.inputs)


def to_program(graph: Graph) -> ExportedProgram:
    """Export the graph again with its dynamic dimensions, for saving or for ONNX."""
    shapes = tuple(
        {i: Dim.DYNAMIC for i, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in graph.inputs
    )
    with torch.no_grad():
        return torch.export.export(graph.module, graph.example(), dynamic_shapes=shapes, strict=False)


def module_path(node: fx.Node) -> str:
    """Return the path of the module that a node came from, '' at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    if path.startswith("_empty_nn_module_stack"):  # torch's mark for nodes that it made itself
        return ""
    path = path.removeprefix("L['self'].")
    return "" if path == _PREFIX else path.removeprefix(f"{_PREFIX}.")
