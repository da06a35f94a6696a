"""The check of an ONNX file before a runtime opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from seatrial.errors import BadInput
from seatrial.models.archive import existing_file
from seatrial.models.port import Port, Ports, widest_code

if TYPE_CHECKING:
    import onnx

_WANTED = "an ONNX model"
_PROTOBUF_LIMIT = (2 << 30) - 1
_TOTAL_LIMIT = 16 << 30
_DEPTH = 32


def check_onnx(path: Path) -> Ports:
    """Return the inputs and outputs of an ONNX file; raises BadInput unless it is safe to hand to a runtime.

    Checked: a valid protobuf of at most 2 GiB with a graph; external data that stays inside the model's folder (no
    absolute names, no `..`, no links), exists, is as long as the model says, and at most 16 GiB in all. No external
    data is read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    existing_file(path, _WANTED)
    if path.stat().st_size > _PROTOBUF_LIMIT:
        raise BadInput(
            f"'{path}' has {path.stat().st_size} bytes", "at most 2 GiB", "keep the weights as external data"
        )
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise BadInput(f"'{path}' is no valid protobuf", _WANTED, "export the model again") from error
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise BadInput(f"'{path}' holds no graph", _WANTED, "export the model again")
    total = 0
    for tensor in _tensors(model, path):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += _check_external(tensor, path)
    if total > _TOTAL_LIMIT:
        raise BadInput(f"'{path}' refers to {total} bytes of external data", "at most 16 GiB", "use a smaller model")
    constants = {tensor.name for tensor in model.graph.initializer}
    last = next((node.op_type for node in model.graph.node if model.graph.output[0].name in node.output), "")
    return Ports(
        tuple(_port(value) for value in model.graph.input if value.name not in constants),
        tuple(_port(value) for value in model.graph.output),
        ends_in_softmax=last == "Softmax",
        widest_weight=max((_widest(tensor) for tensor in model.graph.initializer), default=0),
    )


def _widest(tensor: onnx.TensorProto) -> int:
    """Return the largest absolute code of 8-bit weights that stand in the file itself, 0 for other tensors."""
    import onnx

    inside = tensor.data_location != onnx.TensorProto.EXTERNAL and len(tensor.dims) >= 2
    if tensor.data_type != onnx.TensorProto.INT8 or not inside or not tensor.raw_data:
        return 0
    return widest_code(tensor.raw_data)


def _port(value: onnx.ValueInfoProto) -> Port:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError):
        dtype = str(tensor.elem_type)
    return Port(value.name, shape, dtype)


def _tensors(model: onnx.ModelProto, path: Path) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers and attributes, subgraphs and functions included."""
    stack: list[tuple[onnx.GraphProto | onnx.FunctionProto, int]] = [(model.graph, 0)]
    stack += [(function, 0) for function in model.functions]
    while stack:
        graph, depth = stack.pop()
        if depth > _DEPTH:
            raise BadInput(f"'{path}' nests graphs {depth} deep", _WANTED, "export the model again")
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                stack += [(inner, depth + 1) for inner in (attribute.g, *attribute.graphs) if inner.node]
    for training in model.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from graph.initializer


def _check_external(tensor: onnx.TensorProto, path: Path) -> int:
    """Return the number of bytes that a tensor refers to outside of the model's file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    shown = ascii(location[:120])
    outside = BadInput(
        f"'{path}' keeps tensor {tensor.name[:80]!a} in {shown}",
        "external data inside the model's folder, in a plain file",
        "get the model from a source that you trust, or move its data beside it",
    )
    if (
        not parts
        or location.startswith(("/", "*"))
        or ".." in parts
        or "\\" in location
        or ":" in location
        or "\0" in location
    ):
        raise outside
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise outside
    if not file.is_file():
        raise BadInput(
            f"'{path}' refers to {shown}, which is missing", "its external data beside it", "copy it there too"
        )
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size - offset)
    except ValueError as error:
        raise outside from error
    if offset < 0 or length < 0 or offset + length > size:
        raise BadInput(
            f"'{path}' refers to bytes {offset} to {offset + length} of {shown}, which has {size}",
            "complete external data",
            "copy or download it again",
        )
    return length
