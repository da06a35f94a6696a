"""Latency per operator of one artefact on one target."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from seatrial.core.sites import op_name, operators
from seatrial.core.target import Artefact, Target
from seatrial.deploy.onnxruntime import open_session
from seatrial.deploy.openvino import compile_model
from seatrial.deploy.torch_target import open_graph, torch_threads
from seatrial.errors import NotApplicable

_LENGTH = 128
_FLOATS = {"float": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class OperatorTime:
    """What one operator costs: median microseconds of a run at batch 1, its precision as the runtime names it, and the
    share of all operators' time (a fraction)."""

    name: str
    kind: str
    precision: str
    microseconds: float
    share: float


@dataclass(frozen=True)
class _Seen:
    kind: str
    precision: str
    typical_us: float


def profile(target: Target, artefact: Artefact, *, threads: int, runs: int = 20) -> list[OperatorTime]:
    """Return the time of every operator that the runtime executes, the slowest first.

    Operators that the runtime fused into others do not appear. Raises NotApplicable for a target whose runtime does not
    tell (LiteRT's Python interpreter). Profiling costs time: compare shares, and take latencies from the stopwatch.

    Departures: torch's nodes are timed one after another by an interpreter, because `torch.profiler` names kernels,
    not the nodes of a graph.
    """
    profilers: dict[str, Callable[[Artefact, int, int], Mapping[str, _Seen]]] = {
        "openvino": _openvino,
        "onnxruntime": _onnxruntime,
        "torch": _torch,
    }
    if target.name not in profilers:
        raise NotApplicable(f"the runtime '{target.name}' does not tell the time of its operators")
    seen = profilers[target.name](artefact, threads, runs)
    total = sum(entry.typical_us for entry in seen.values()) or 1.0
    times = [
        OperatorTime(name, entry.kind, entry.precision, entry.typical_us, entry.typical_us / total)
        for name, entry in seen.items()
    ]
    return sorted(times, key=lambda entry: (-entry.microseconds, entry.name))


def _typical(times_us: list[float]) -> float:
    """Return the median: one run that the system interrupts would make the operator at hand the slowest of all."""
    return float(np.median(times_us))


def _array(shape: list[int | None], dtype: str) -> np.ndarray:
    sizes = [size or (1 if axis == 0 else _LENGTH) for axis, size in enumerate(shape)]
    kind = np.dtype(dtype)
    return np.full(sizes, 0.5, kind) if kind.kind == "f" else np.ones(sizes, kind)


def _openvino(artefact: Artefact, threads: int, runs: int) -> Mapping[str, _Seen]:
    compiled = compile_model(artefact, threads, profiled=True)
    request = compiled.create_infer_request()
    feed = {}
    for index, port in enumerate(compiled.inputs):
        shape = [None if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape()]
        feed[index] = _array(shape, str(np.dtype(port.get_element_type().to_dtype()).name))
    request.infer(feed)
    seen: dict[str, tuple[str, str]] = {}
    spent_us: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(runs):
        request.infer(feed)
        for info in request.get_profiling_info():
            if str(info.status).endswith("EXECUTED"):
                # exec_type is KERNEL_PRECISION, such as brgconv_avx512_amx_i8.
                seen[info.node_name] = info.node_type, info.exec_type.rpartition("_")[2].lower()
                spent_us[info.node_name].append(info.real_time.total_seconds() * 1e6)
    return {name: _Seen(*seen[name], _typical(times)) for name, times in spent_us.items()}


def _onnxruntime(artefact: Artefact, threads: int, runs: int) -> Mapping[str, _Seen]:
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(artefact, threads, profile_prefix=str(Path(folder) / "profile"))
        feed = {}
        for tensor in session.get_inputs():
            kind = tensor.type.removeprefix("tensor(").removesuffix(")")
            shape = [size if isinstance(size, int) else None for size in tensor.shape]
            feed[tensor.name] = _array(shape, str({"float": "float32", "double": "float64"}.get(kind, kind)))
        for _ in range(1 + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent_us: defaultdict[str, list[float]] = defaultdict(list)
    seen: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name, told = event["name"].removesuffix("_kernel_time"), event["args"]
        types = [kind for entry in told.get("input_type_shape", []) for kind in entry]
        first = str(types[0]) if types else "unknown"
        seen[name] = str(told["op_name"]), _FLOATS.get(first, first)
        spent_us[name].append(float(event["dur"]))
    # The first run allocates; its times are left out.
    return {name: _Seen(*seen[name], _typical(times[-runs:])) for name, times in spent_us.items()}


def _torch(artefact: Artefact, threads: int, runs: int) -> Mapping[str, _Seen]:
    graph, device, arithmetic = open_graph(artefact)
    names = {node: name for name, node in operators(graph).items()}
    clock = _TimedNodes(graph.module, device)
    inputs = [tensor.to(device) for tensor in graph.example(batch=1, length=_LENGTH)]
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic)
    with torch_threads(threads), torch.no_grad(), torch.autocast(device.split(":")[0], narrow, narrow is not None):
        clock.run(*inputs)
        clock.spent_us.clear()
        for _ in range(runs):
            clock.run(*inputs)
    precision = {None: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[narrow]
    return {
        names[node]: _Seen(op_name(node), precision, _typical(spent_us))
        for node, spent_us in clock.spent_us.items()
        if node.op == "call_function"
    }


class _TimedNodes(fx.Interpreter):
    """Runs a graph node by node and notes the microseconds that each took."""

    def __init__(self, module: fx.GraphModule, device: str) -> None:
        super().__init__(module)
        self.on_gpu = device.startswith("cuda")
        self.spent_us: defaultdict[fx.Node, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Tensor:
        start_ns = time.perf_counter_ns()
        result = super().run_node(n)
        if self.on_gpu:
            torch.cuda.synchronize()
        self.spent_us[n].append((time.perf_counter_ns() - start_ns) / 1000)
        return result
