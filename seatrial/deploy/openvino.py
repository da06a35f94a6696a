"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Predictor
from seatrial.core.target import Artefact, Target, Timing
from seatrial.deploy.flat_linear import flat_linears
from seatrial.deploy.hard_sigmoid import spelled_out
from seatrial.deploy.input_adapter import InputAdapter
from seatrial.deploy.integers import in_integers
from seatrial.deploy.machine import weight_bits_cap
from seatrial.deploy.onnx_export import ExportedOnnx, write_onnx
from seatrial.deploy.openvino_arithmetic import OpenVinoArithmetic
from seatrial.deploy.session_predictor import SessionPredictor
from seatrial.deploy.stopwatch import Stopwatch, Subject
from seatrial.errors import BadInput, NotApplicable, missing_extra
from seatrial.models.onnx_file import check_onnx
from seatrial.models.port import Port
from seatrial.models.tflite_file import check_tflite

Hint = Literal["f32", "bf16"]


def _rules() -> PlacementRules:
    return PlacementRules(
        "openvino",
        "by-range",
        operator_outputs=False,
        attention_products="all",
        linear_sign="unsigned",
        products_around_zero=True,
        weight_bits_cap=weight_bits_cap(),
    )


@dataclass(frozen=True)
class OpenVino(Target):
    """OpenVINO's CPU plugin, one stream, tuned for latency; opens `.onnx` and `.tflite`.

    `hint` is the float type of what is not integer; None takes bf16 for `bits="bf16"` and float32 otherwise.
    """

    hint: Hint | None = None
    placement: PlacementRules = field(default_factory=_rules)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    name: str = "openvino"

    @staticmethod
    def installed() -> bool:
        """Return whether the runtime can be imported."""
        return find_spec("openvino") is not None

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32", "bf16") if "BF16" in capabilities() else ("float32",)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        hint = self._hint(bits)
        if hint == "bf16" and "bf16" not in self.precisions:
            raise NotApplicable("this CPU does not execute bf16; OpenVINO would run float32 instead")
        # With the hint the plugin itself narrows; casts in the file would only add conversions.
        native = frozenset({"bf16"}) if hint == "bf16" else frozenset()
        exported = write_onnx(
            self.prepared(graph),
            path.with_name(path.name + ".onnx"),
            native_floats=native,
            group_products="float32",
        )
        return self.artefact(exported, bits)

    def artefact(self, exported: ExportedOnnx, bits: str) -> Artefact:
        """Return an exported file with the settings that it runs with."""
        settings = {"hint": self._hint(bits), "layout": "NCHW"}
        if exported.float_groups:
            settings["float_groups"] = str(len(exported.float_groups))
        return Artefact(exported.path, "onnx", bits, settings)

    def _hint(self, bits: str) -> Hint:
        return self.hint or ("bf16" if bits == "bf16" else "f32")

    def prepared(self, graph: Graph) -> Graph:
        """Return the graph as it is exported for this runtime."""
        return flat_linears(spelled_out(graph))

    def simulated(self, graph: Graph) -> Graph:
        return in_integers(self.prepared(graph), OpenVinoArithmetic())

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        compiled = compile_model(artefact, threads)
        inputs = tuple(_info(port) for port in compiled.inputs)
        output = _info(compiled.outputs[0])
        if artefact.format == "tflite":  # OpenVINO keeps the types but forgets the scales
            ports = check_tflite(artefact.path)
            inputs = tuple(_with_grid(port, told) for port, told in zip(inputs, ports.inputs, strict=True))
            output = _with_grid(output, ports.outputs[0])
        adapter = InputAdapter.of(inputs[0], output, artefact.settings)
        request = compiled.create_infer_request()

        def run(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            return request.infer(dict(arrays))[0]

        return SessionPredictor(run, inputs, adapter)

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        subjects = [Subject(self.name, artefact) for artefact in artefacts]
        return self.stopwatch.measure(subjects, threads=threads, batches=batches)


def capabilities() -> tuple[str, ...]:
    """Return what OpenVINO says that this CPU executes: `FP32`, `BF16`, `INT8`, ..."""
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def compile_model(artefact: Artefact, threads: int, *, profiled: bool = False) -> Any:
    """Return the `openvino.CompiledModel` of a file; raises BadInput for a file or format that it cannot read."""
    if artefact.format not in ("onnx", "tflite"):
        raise BadInput(f"a .{artefact.format} file for OpenVINO", ".onnx or .tflite", "open it on another target")
    core = _core()
    if artefact.format == "onnx":
        check_onnx(artefact.path)
    else:
        check_tflite(artefact.path)
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",  # evaluation may share its cores with other processes
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # nothing is quantized that the file does not quantize
        "PERF_COUNT": "YES" if profiled else "NO",
    }
    hint = artefact.settings.get("hint", "f32")
    if hint != "default":
        properties["INFERENCE_PRECISION_HINT"] = hint
    try:
        return core.compile_model(core.read_model(str(artefact.path)), "CPU", properties)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-300:]
        raise BadInput(
            f"{artefact.path.name}: {reason}", "a model that OpenVINO reads", "try another target"
        ) from error


def save_ir(path: Path) -> tuple[Path, Path]:
    """Write an ONNX file as OpenVINO's own format beside it, weights in their types, and return its two files."""
    core = _core()
    import openvino

    check_onnx(path)
    file = path.with_suffix(".xml")
    openvino.save_model(core.read_model(str(path)), str(file), compress_to_fp16=False)
    return file, file.with_suffix(".bin")


def _core() -> Any:
    if not OpenVino.installed():
        raise missing_extra("openvino", "openvino", "the target 'openvino'")
    # `import openvino` reports itself to its makers from a forked process, which is measured along and can hang;
    # without this package it does not. One that the program has imported itself stays.
    silent = "openvino_telemetry" not in sys.modules
    if silent:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    finally:
        if silent:
            del sys.modules["openvino_telemetry"]
    return openvino.Core()


def _info(port: Any) -> Port:
    shape = tuple(None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape())
    name = port.get_any_name() if port.get_names() else str(port.get_index())
    return Port(name, shape, np.dtype(port.get_element_type().to_dtype()).name)


def _with_grid(port: Port, told: Port) -> Port:
    return replace(port, scale=told.scale, zero_point=told.zero_point)
