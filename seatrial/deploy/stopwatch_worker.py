"""The process that the stopwatch measures in: one runtime, one model, JSON lines on stdin and stdout.

It imports nothing of seatrial and torch only where torch is the runtime, so that it starts fast and its memory is the
runtime's. Requests: `open`, `prepare` (load for a batch size), `calls`, `memory`; the end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_LENGTH = 128
"""What a dynamic dimension other than the batch becomes, unless the artefact says: tokens of a sentence."""

Call = Callable[[], object]
Loader = Callable[[dict[str, Any], int], Call]


def _sample(shape: list[int], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.random(shape, np.float32).astype(kind)
    if kind.itemsize == 1 and kind.kind in "iu":
        ends = np.iinfo(kind)
        return rng.integers(ends.min, ends.max, shape, kind, endpoint=True)
    return np.ones(shape, kind)  # tokens and masks


def _sizes(shape: list[Any], batch: int, request: dict[str, Any]) -> list[int]:
    """Fill dynamic dimensions in: the first is the batch, others are as long as the setting `length` says."""
    length = int(request["settings"].get("length", _LENGTH))
    sizes = [dim if isinstance(dim, int) and dim > 0 else length for dim in shape]
    if sizes and not (isinstance(shape[0], int) and shape[0] > 0):
        sizes[0] = batch
    return sizes


def _looped(call: Call, held: int, batch: int) -> Call:
    """Repeat a call whose file holds a smaller batch."""
    repeats = -(-batch // max(held, 1))
    if repeats <= 1:
        return call

    def run() -> None:
        for _ in range(repeats):
            call()

    return run


def _onnxruntime(request: dict[str, Any], batch: int) -> Call:
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request["threads"], 1
    options.log_severity_level = 3
    # As deployed, threads spin during a run; after it they stop, because a neighbor is measured then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # As in seatrial.deploy.onnxruntime: what is measured is what is evaluated.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    disabled = [name for name in request["settings"].get("disabled_optimizers", "").split(",") if name]
    session = ort.InferenceSession(
        request["path"], options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
    )
    binding = session.io_binding()
    kinds = {"float": "float32", "double": "float64"}
    held = batch
    for tensor in session.get_inputs():
        kind = tensor.type.removeprefix("tensor(").removesuffix(")")
        array = _sample(_sizes(list(tensor.shape), batch, request), str(kinds.get(kind, kind)))
        held = len(array)
        binding.bind_ortvalue_input(tensor.name, ort.OrtValue.ortvalue_from_numpy(array))
    for tensor in session.get_outputs()[:1]:
        binding.bind_output(tensor.name)
    return _looped(lambda: session.run_with_iobinding(binding), held, batch)


def _openvino(request: dict[str, Any], batch: int) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(request["path"])
    shapes = {}
    for port in model.inputs:
        dims = [None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()]
        shapes[port] = _sizes(dims, batch, request)
    model.reshape(shapes)  # static, as a deployment would
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(request["threads"]),
        "ENABLE_CPU_PINNING": "NO",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    hint = request["settings"].get("hint", "f32")
    if hint != "default":
        properties["INFERENCE_PRECISION_HINT"] = hint
    compiled = core.compile_model(model, "CPU", properties)
    infer = compiled.create_infer_request()
    held = batch
    for index, port in enumerate(compiled.inputs):
        array = _sample(list(port.get_shape()), np.dtype(port.get_element_type().to_dtype()).name)
        held = len(array)
        infer.set_input_tensor(index, openvino.Tensor(array))
    return _looped(infer.infer, held, batch)


def _litert(request: dict[str, Any], batch: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=request["path"], num_threads=request["threads"])
    interpreter.allocate_tensors()
    held = batch
    for tensor in interpreter.get_input_details():
        shape = [int(dim) for dim in tensor["shape"]]
        held = shape[0]
        interpreter.set_tensor(tensor["index"], _sample(shape, np.dtype(tensor["dtype"]).name))
    return _looped(interpreter.invoke, held, batch)


def _torch(request: dict[str, Any], batch: int) -> Call:
    import torch

    from seatrial.core.target import Artefact
    from seatrial.deploy.torch_target import open_predictor

    torch.set_num_threads(request["threads"])
    artefact = Artefact(Path(request["path"]), request["format"], "", request["settings"])
    predictor = open_predictor(artefact)
    graph, device = predictor.graph, predictor.device
    arrays = {
        spec.name: torch.from_numpy(_sample(_sizes(list(spec.shape), batch, request), spec.dtype))
        for spec in graph.inputs
    }
    inputs = {name: array.to(device) for name, array in arrays.items()}

    def run() -> None:
        with torch.no_grad():
            predictor(inputs)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return run


_LOADERS: dict[str, Loader] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "litert": _litert,
    "torch": _torch,
}
_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert.interpreter"}


def _peak_memory_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux; the resource module knows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Worker:
    """Answers one request after another."""

    def __init__(self) -> None:
        self.opened: dict[str, Any] = {}
        self.call: Call | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "open":
                self.opened = request
                __import__(_PACKAGES.get(request["runtime"], "seatrial.deploy.torch_target"))
                return {"ready": True}
            case "prepare":
                self.call = None  # frees the session of the last batch size
                start_s = time.perf_counter()
                self.call = _LOADERS[self.opened["runtime"]](self.opened, int(request["batch"]))
                return {"load_ms": 1000 * (time.perf_counter() - start_s)}
            case "calls":
                assert self.call is not None, "prepare comes before calls"
                return {"ms": [self._timed(self.call) for _ in range(int(request["count"]))]}
            case "memory":
                return {"peak_memory_bytes": _peak_memory_bytes()}
        raise ValueError(f"unknown request {request['do']}")

    @staticmethod
    def _timed(call: Call) -> float:
        start_ns = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start_ns) / 1e6


def main() -> None:
    """Answer requests until stdin ends; runtimes that print do so on stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]  see `seatrial.deploy.openvino`
    worker = _Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:  # whatever a runtime raises is the answer
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
