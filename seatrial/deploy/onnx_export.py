"""From a captured graph to an ONNX file that ONNX Runtime and OpenVINO both run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset
from torch.export import ExportedProgram

import seatrial.core.insert_round  # noqa: F401  registers the operators that are translated here
from seatrial.core.graph import Graph, module_path
from seatrial.deploy.anonymous import anonymous_program
from seatrial.deploy.onnx_biases import float_weights_between_rounds, round_biases
from seatrial.deploy.onnx_cleaning import clean
from seatrial.deploy.onnx_constants import Names, drop_empty_pads, drop_unused, fold_transposes, own_constants
from seatrial.deploy.onnx_grouped_weights import GroupProducts, pack_groups, weight_name
from seatrial.deploy.onnx_integer_kernels import pool_globally, round_sigmoids
from seatrial.deploy.onnx_lowering import DOMAIN, lower
from seatrial.errors import BadInput

OPSET = 21  # the first with 16-bit QuantizeLinear
LARGEST_SINGLE_FILE = 1_900_000_000  # protobuf ends at 2 GiB


@dataclass(frozen=True)
class ExportedOnnx:
    """A written ONNX file; `float_weights` are operators whose weight stays float between two rounds.

    Of weights on grids of groups, `packed_groups` are stored as integers and `float_groups` as their values.
    """

    path: Path
    float_weights: tuple[str, ...]
    packed_groups: tuple[str, ...] = ()
    float_groups: tuple[str, ...] = ()


def export_onnx(graph: Graph, path: Path) -> Path:
    """Write `graph` to the ONNX file `path`, as any runtime takes it, and return the path; see `write_onnx`."""
    return write_onnx(graph, path).path


def write_onnx(
    graph: Graph,
    path: Path,
    *,
    native_floats: frozenset[str] = frozenset(),
    for_onnxruntime: bool = False,
    group_products: GroupProducts | None = None,
    largest_single_file: int = LARGEST_SINGLE_FILE,
) -> ExportedOnnx:
    """Write `graph` to the ONNX file `path`; weights above `largest_single_file` bytes go to `path`.data beside it.

    Rounds become QuantizeLinear and DequantizeLinear with core.qdq's rounding (half to even); rounded weights are
    stored as integers. Inputs carry the names and dynamic dimensions of `graph.inputs`; the output is `output`. Equal
    graphs give equal bytes. Rounds to a float type in `native_floats` are left to the runtime. With
    `for_onnxruntime`, means, swishes and biases are written as that runtime's integer kernels want them. With
    `group_products`, weights on grids of groups become integers of MatMulNBits, which is no standard ONNX.
    Raises BadInput that names the operator and the module that ONNX cannot express, NotApplicable for a grid that
    it cannot.

    Departures: grids of fewer than 8 bits are stored and run as 8-bit codes inside a clip, because the CPU kernels of
    both runtimes begin at 8 bits; the values are exactly those of the narrow grid.
    """
    return finish(
        graph,
        translated(graph),
        path,
        native_floats=native_floats,
        for_onnxruntime=for_onnxruntime,
        group_products=group_products,
        largest_single_file=largest_single_file,
    )


def finish(
    graph: Graph,
    model: ir.Model,
    path: Path,
    *,
    native_floats: frozenset[str],
    for_onnxruntime: bool,
    group_products: GroupProducts | None = None,
    largest_single_file: int = LARGEST_SINGLE_FILE,
) -> ExportedOnnx:
    """Write what `translated` gave for `graph` changing it in place; see `write_onnx`."""
    names = Names(model.graph)
    packed = pack_groups(model, names, group_products) if group_products is not None else ()
    left = tuple(weight_name(node) for node in model.graph if node.op_type == "GroupedQdq")
    lower(model, names, native_floats)
    drop_empty_pads(model.graph)
    fold_transposes(model.graph, names)
    own_constants(model.graph, names)
    float_weights = tuple(float_weights_between_rounds(model.graph))
    if for_onnxruntime:
        pool_globally(model.graph, names)
        round_sigmoids(model.graph, names)
        round_biases(model.graph, names)
    drop_unused(model.graph)
    clean(graph, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    path.with_name(path.name + ".data").unlink(missing_ok=True)  # left by an earlier model, it would be counted
    if size <= largest_single_file:
        path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    else:
        ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024)
    return ExportedOnnx(path, float_weights, packed, left)


def _operator(name: str, inputs: str, attributes: str) -> Callable[..., object]:
    """Return an onnxscript operator of our own domain: opaque to the exporter's optimizer, lowered afterwards.

    `inputs` has a letter for each: T a float tensor, Z integers. QuantizeLinear pairs on weights would otherwise be
    folded back to float there.
    """
    kinds = {"i": onnx.defs.OpSchema.AttrType.INT, "s": onnx.defs.OpSchema.AttrType.STRING}
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter(f"x{i}", kind) for i, kind in enumerate(inputs)],
        outputs=[onnx.defs.OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], ""), ("Z", ["tensor(int64)"], "")][: 1 + ("Z" in inputs)],
        attributes=[
            onnx.defs.OpSchema.Attribute(part[:-2], kinds[part[-1]], required=True) for part in attributes.split()
        ],
    )
    return Op(Opset(DOMAIN, 1), name, schema)


def translated(graph: Graph) -> ir.Model:
    """Return `graph` as ONNX in which our own operators still stand; raises BadInput as `write_onnx` does."""
    program = anonymous_program(graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecated parts
            result = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=_translations(),
            )
    except torch.onnx.OnnxExporterError as error:
        raise _explained(program, error) from error
    assert result is not None
    return result.model


def _translations() -> dict[Callable[..., object], Callable[..., object]]:
    """Return, for each of our operators, the function that writes its opaque form."""
    qdq_op = _operator("Qdq", "TTZ", "low:i high:i axis:i")
    narrow_op = _operator("NarrowFloat", "T", "kind:s")
    dynamic_op = _operator("DynamicQdq", "T", "bits:i symmetric:i group:i")
    grouped_op = _operator("GroupedQdq", "TTZ", "bits:i group:i")
    logarithmic_op = _operator("LogarithmicQdq", "TT", "bits:i steps:i")
    twin_op = _operator("TwinQdq", "TTT", "bits:i by_sign:i")

    def translate_qdq(x, scale, zero_point, low: int, high: int, axis: int):
        return qdq_op(x, scale, zero_point, low=low, high=high, axis=axis)

    def translate_narrow_float(x, kind: str):
        return narrow_op(x, kind=kind)

    def translate_dynamic(x, bits: int, symmetric: bool, group: int):
        return dynamic_op(x, bits=bits, symmetric=int(symmetric), group=group)

    def translate_grouped(x, scale, zero_point, bits: int, group: int):
        return grouped_op(x, scale, zero_point, bits=bits, group=group)

    def translate_logarithmic(x, scale, bits: int, steps: int):
        return logarithmic_op(x, scale, bits=bits, steps=steps)

    def translate_twin(x, fine, coarse, bits: int, by_sign: bool):
        return twin_op(x, fine, coarse, bits=bits, by_sign=int(by_sign))

    ours = torch.ops.seatrial
    return {
        ours.qdq.default: translate_qdq,
        ours.narrow_float.default: translate_narrow_float,
        ours.dynamic_qdq.default: translate_dynamic,
        ours.grouped_qdq.default: translate_grouped,
        ours.logarithmic_qdq.default: translate_logarithmic,
        ours.twin_qdq.default: translate_twin,
    }


def _explained(program: ExportedProgram, error: Exception) -> BadInput:
    """Return the error that names the operator and the module of a failed translation."""
    text = str(error)
    name = re.search(r"translating node %(\w+)", text)
    target = re.search(r"target=([\w.:]+)", text)
    # The exporter decomposes before it translates: the node may be new, then the operator it came from is like it.
    kind = target[1].removesuffix(".default").split(".")[-1] if target else ""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    node = next((node for node in calls if name and node.name == name[1]), None)
    node = node or next((node for node in calls if kind and kind in str(node.target)), None)
    operator = str(node.target) if node else target[1] if target else "unknown"
    place = module_path(node) if node else ""
    return BadInput(
        f"the ONNX export failed at operator '{operator}' in module '{place or 'the top of the model'}'",
        "operators that ONNX expresses",
        "rewrite that module with other operators, or keep the model on the target 'torch'",
    )
