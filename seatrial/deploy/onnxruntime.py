"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.predictor import Predictor
from seatrial.core.target import Artefact, Target, Timing
from seatrial.deploy.clamped_norm import clamped_norms
from seatrial.deploy.input_adapter import InputAdapter
from seatrial.deploy.integers import in_integers
from seatrial.deploy.machine import weight_bits_cap
from seatrial.deploy.onnx_export import ExportedOnnx, write_onnx
from seatrial.deploy.onnx_grouped_weights import GroupProducts, rounded_inputs
from seatrial.deploy.onnxruntime_arithmetic import OnnxRuntimeArithmetic
from seatrial.deploy.rounded_sigmoid import rounded_sigmoids
from seatrial.deploy.session_predictor import SessionPredictor
from seatrial.deploy.stopwatch import Stopwatch, Subject
from seatrial.errors import BadInput, NotApplicable
from seatrial.models.onnx_file import check_onnx
from seatrial.models.port import Port

_TYPES = {"float": "float32", "double": "float64"}
UNASKED = "WeightBiasQuantization"
"""The optimizer that rounds float weights between two rounds; off where a model has such weights on purpose."""


def _rules() -> PlacementRules:
    return PlacementRules(
        "onnxruntime",
        "unsigned",
        operator_outputs=True,
        attention_products="query-key",
        weight_bits_cap=weight_bits_cap(),
    )


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime's CPU provider at full graph optimization; opens `.onnx`.

    Departures: biases are stored as integers, and where weights stay float between two rounds the optimizer that
    would round those too is switched off, so that what runs is what was planned. Products with weights on grids of
    groups round their inputs to 8 bits as well, unless `group_products` is `float32`: 2 to 3 times as fast for 4-bit
    weights, 10 to 20 times for 8-bit ones. The simulation does likewise, and the artefact's settings say so.
    """

    placement: PlacementRules = field(default_factory=_rules)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    group_products: GroupProducts = "int8"
    name: str = "onnxruntime"

    @staticmethod
    def installed() -> bool:
        """Return whether the runtime can be imported."""
        return find_spec("onnxruntime") is not None

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32",)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        if bits in ("bf16", "fp16"):
            raise NotApplicable(f"ONNX Runtime's CPU kernels do not run {bits}")
        exported = write_onnx(
            self.prepared(graph),
            path.with_name(path.name + ".onnx"),
            for_onnxruntime=True,
            group_products=self.group_products,
        )
        return self.artefact(exported, bits)

    def artefact(self, exported: ExportedOnnx, bits: str) -> Artefact:
        """Return an exported file with the settings that it runs with."""
        settings = {"layout": "NCHW"}
        if exported.float_weights:
            settings["disabled_optimizers"] = UNASKED
        if exported.packed_groups:
            settings["group_products"] = self.group_products
        if exported.float_groups:
            settings["float_groups"] = str(len(exported.float_groups))
        return Artefact(exported.path, "onnx", bits, settings)

    def prepared(self, graph: Graph) -> Graph:
        """Return the graph as it is exported for this runtime."""
        return clamped_norms(graph)

    def simulated(self, graph: Graph) -> Graph:
        simulation = in_integers(rounded_sigmoids(self.prepared(graph)), OnnxRuntimeArithmetic())
        return rounded_inputs(simulation) if self.group_products == "int8" else simulation

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        if artefact.format != "onnx":
            raise BadInput(f"a .{artefact.format} file for ONNX Runtime", ".onnx", "open it on another target")
        session = open_session(artefact, threads)
        inputs = tuple(_info(tensor) for tensor in session.get_inputs())
        output = session.get_outputs()[0]
        adapter = InputAdapter.of(inputs[0], _info(output), artefact.settings)
        wanted = [output.name]

        def run(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            return session.run(wanted, dict(arrays))[0]

        return SessionPredictor(run, inputs, adapter)

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        subjects = [Subject(self.name, artefact) for artefact in artefacts]
        return self.stopwatch.measure(subjects, threads=threads, batches=batches)


def open_session(artefact: Artefact, threads: int, *, profile_prefix: str | None = None) -> Any:
    """Return an `onnxruntime.InferenceSession` whose waiting threads sleep; raises BadInput for a bad file."""
    if not OnnxRuntime.installed():
        raise BadInput("onnxruntime is not installed", "a base dependency of seatrial", "run: pip install onnxruntime")
    import onnxruntime as ort

    check_onnx(artefact.path)
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin would spoil the time of whatever else runs in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A product with an integer weight and a float input keeps its float input: the default would round that too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    disabled = [name for name in artefact.settings.get("disabled_optimizers", "").split(",") if name]
    try:
        return ort.InferenceSession(
            str(artefact.path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
        )
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{artefact.path.name}: {reason}", "a model that ONNX Runtime loads", "export it again"
        ) from error


def _info(tensor: Any) -> Port:
    kind = str(tensor.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in tensor.shape)
    return Port(tensor.name, shape, _TYPES.get(kind, kind))
