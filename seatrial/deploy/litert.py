"""LiteRT (TensorFlow Lite) on the CPU, for `.tflite` files as they were deployed."""

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
from seatrial.deploy.input_adapter import InputAdapter
from seatrial.deploy.session_predictor import SessionPredictor
from seatrial.deploy.stopwatch import Stopwatch, Subject
from seatrial.errors import BadInput, NotApplicable, missing_extra
from seatrial.models.port import Port
from seatrial.models.tflite_file import check_tflite


def _rules() -> PlacementRules:
    # Of no effect as long as nothing is compiled for it: TFLite's own converter rounds everywhere, with int8 and any
    # zero point, which these rules cannot say.
    return PlacementRules("litert", "by-range", operator_outputs=True)


@dataclass(frozen=True)
class LiteRt(Target):
    """LiteRT's CPU interpreter (XNNPACK); opens `.tflite`, writes nothing."""

    placement: PlacementRules = field(default_factory=_rules)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    name: str = "litert"

    @staticmethod
    def installed() -> bool:
        """Return whether the runtime can be imported."""
        return find_spec("ai_edge_litert") is not None

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32",)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        raise NotApplicable("LiteRT opens .tflite files that exist; seatrial does not write them")

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        interpreter = open_interpreter(artefact, threads)
        inputs = tuple(_info(tensor) for tensor in interpreter.get_input_details())
        result = interpreter.get_output_details()[0]
        adapter = InputAdapter.of(inputs[0], _info(result), artefact.settings)
        indices = {tensor["name"]: tensor["index"] for tensor in interpreter.get_input_details()}

        def run(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
            for name, array in arrays.items():
                interpreter.set_tensor(indices[name], array)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

        return SessionPredictor(run, inputs, adapter)

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        subjects = [Subject(self.name, artefact) for artefact in artefacts]
        return self.stopwatch.measure(subjects, threads=threads, batches=batches)


def open_interpreter(artefact: Artefact, threads: int) -> Any:
    """Return an `ai_edge_litert` interpreter with its tensors allocated; raises BadInput for a bad file."""
    if artefact.format != "tflite":
        raise BadInput(f"a .{artefact.format} file for LiteRT", ".tflite", "open it on another target")
    if not LiteRt.installed():
        raise missing_extra("ai-edge-litert", "litert", "the target 'litert'")
    from ai_edge_litert.interpreter import Interpreter

    check_tflite(artefact.path)
    try:
        interpreter = Interpreter(model_path=str(artefact.path), num_threads=threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{artefact.path.name}: {reason}", "a model that LiteRT loads", "try another target") from error
    return interpreter


def _info(tensor: Mapping[str, Any]) -> Port:
    grid = tensor["quantization_parameters"]
    scale = float(grid["scales"][0]) if len(grid["scales"]) == 1 else None
    zero_point = int(grid["zero_points"][0]) if scale is not None else 0
    # The allocated shape, not the signature: the interpreter runs the batch it was allocated for.
    shape = tuple(int(dim) for dim in tensor["shape"])
    return Port(tensor["name"], shape, np.dtype(tensor["dtype"]).name, scale, zero_point)
