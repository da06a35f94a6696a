"""The stopwatch: a recorded workload on a fake clock for its arithmetic, real children for its protocol."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from seatrial.core.target import Artefact
from seatrial.deploy.stopwatch import ChildProcess, Stopwatch, Subject, WorkerDied


@dataclass
class World:
    """A clock that only work moves, and a diary of who worked. The machine slows down as time goes by."""

    now_s: float = 0.0
    drift: float = 0.0
    diary: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


@dataclass
class Recorded:
    """A runner whose calls take `base_ms` a picture; the first after somebody else worked takes five times that."""

    world: World
    name: str
    base_ms: float
    batch: int = 0
    breaks: bool = False

    def prepare(self, batch: int) -> float:
        self.batch = batch
        return 100.0 * batch

    def calls(self, count: int) -> Sequence[float]:
        if self.breaks:
            raise WorkerDied(f"measuring {self.name} failed")
        told = []
        for _ in range(count):
            cold = 5 if not self.world.diary or self.world.diary[-1] != self.name else 1
            told.append(self.base_ms * self.batch * cold * (1 + self.world.drift * self.world.now_s))
            self.world.now_s += told[-1] / 1000
            self.world.diary.append(self.name)
        return told

    def peak_memory_bytes(self) -> int:
        return 7

    def end(self) -> None:
        self.world.ended.append(self.name)


def stopwatch(world: World, base_ms: dict[str, float], breaks: str = "", **options: float) -> Stopwatch:
    return Stopwatch(
        launch=lambda subject, threads: Recorded(
            world, subject.runtime, base_ms[subject.runtime], 0, subject.runtime == breaks
        ),
        clock_s=lambda: world.now_s,
        **options,  # pyright: ignore[reportArgumentType]
    )


def subjects(*names: str) -> list[Subject]:
    return [Subject(name, Artefact(Path(f"{name}.onnx"), "onnx", "w8a8", {})) for name in names]


def test_alternated_and_separate_figures_agree() -> None:
    base_ms = {"a": 2.0, "b": 3.0, "c": 0.1}
    together = stopwatch(World(), base_ms).measure(subjects("a", "b", "c"), threads=2)
    for name, told in zip(base_ms, together, strict=True):
        (alone,) = stopwatch(World(), base_ms).measure(subjects(name), threads=2)
        assert [latency.median for latency in told.latency] == pytest.approx([base_ms[name], 8 * base_ms[name]])
        assert [latency.median for latency in told.latency] == pytest.approx([la.median for la in alone.latency])
        assert [latency.p90 for latency in told.latency] == pytest.approx([la.p90 for la in alone.latency])
        assert told.throughput_per_s == pytest.approx(1000 / base_ms[name])
        assert (told.load_ms, told.peak_memory_bytes) == (100.0, 7)
        assert [(latency.batch, latency.threads) for latency in told.latency] == [(1, 2), (8, 2)]
        assert all(latency.runs >= 30 for latency in told.latency)


def test_a_machine_that_slows_down_is_fair_to_all() -> None:
    world = World(drift=0.5)
    one, two = stopwatch(world, {"a": 2.0, "b": 2.0}).measure(subjects("a", "b"), threads=1, batches=(1,))
    assert one.latency[0].median / two.latency[0].median == pytest.approx(1, abs=0.03)
    # Measured one after the other, the same machine tells them apart.
    world, apart = World(drift=0.5), []
    for name in ("a", "b"):
        apart += stopwatch(world, {"a": 2.0, "b": 2.0}).measure(subjects(name), threads=1, batches=(1,))
    assert apart[1].latency[0].median / apart[0].latency[0].median > 1.1


def test_the_subjects_take_turns_and_turn_around() -> None:
    world = World()
    stopwatch(world, {"a": 5.0, "b": 5.0, "c": 5.0}).measure(subjects("a", "b", "c"), threads=1, batches=(1,))
    turns = [name for name, _ in groupby(world.diary)]
    # Three warm-ups, then forward and backward; who ends a round begins the next.
    assert turns[:10] == ["a", "b", "c", "a", "b", "c", "b", "a", "b", "c"]
    assert world.ended == ["a", "b", "c"]


def test_percentiles_are_those_of_the_calls() -> None:
    world = World(drift=1.0)
    (told,) = stopwatch(world, {"a": 4.0}).measure(subjects("a"), threads=1, batches=(1,))
    (latency,) = told.latency
    assert latency.p10 < latency.median < latency.p90
    assert latency.runs * latency.p10 / 1000 < world.now_s


def test_slow_models_are_bounded_by_the_budget() -> None:
    world = World()
    (told,) = stopwatch(world, {"a": 4000.0}, most_s=10.0).measure(subjects("a"), threads=1, batches=(1,))
    assert 3 <= told.latency[0].runs < 30
    assert world.now_s < 200


def test_every_runner_is_ended_when_one_dies() -> None:
    world = World()
    with pytest.raises(WorkerDied, match="measuring b"):
        stopwatch(world, {"a": 1.0, "b": 1.0}, breaks="b").measure(subjects("a", "b"), threads=1)
    assert world.ended == ["a", "b"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    rng = np.random.default_rng(0)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], rng.random(108, np.float32))
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4, 6, 6])
    graph = helper.make_graph([helper.make_node("Conv", ["image", "w"], ["output"])], "g", [value], [result], [weights])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    proto.ir_version = 10
    path = tmp_path_factory.mktemp("stopwatch") / "conv.onnx"
    save(proto, path)
    return Artefact(path, "onnx", "float32", {})


def test_real_children(model: Artefact) -> None:
    runtimes = ["onnxruntime"]
    try:
        import openvino  # noqa: F401

        runtimes.append("openvino")
    except ImportError:
        pass  # the other runtime shows the protocol alone
    quick = Stopwatch(least_calls=5, least_s=0.0, round_s=0.001)
    timings = quick.measure([Subject(runtime, model) for runtime in runtimes], threads=1, batches=(1, 4))
    for timing in timings:
        assert [latency.batch for latency in timing.latency] == [1, 4]
        assert all(0 < latency.p10 <= latency.median <= latency.p90 for latency in timing.latency)
        assert all(latency.runs >= 5 for latency in timing.latency)
        assert timing.throughput_per_s == pytest.approx(4000 / timing.latency[1].median)
        assert timing.load_ms > 0
        assert timing.peak_memory_bytes > 1 << 20


def test_a_file_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(WorkerDied, match=r"broken\.onnx on onnxruntime"):
        Stopwatch().measure([Subject("onnxruntime", Artefact(path, "onnx", "w8a8", {}))], threads=1)


def test_a_child_that_is_killed_is_named(model: Artefact) -> None:
    child = ChildProcess(Subject("onnxruntime", model), threads=1)
    try:
        child.prepare(1)
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait()
        with pytest.raises(WorkerDied, match=r"conv\.onnx on onnxruntime failed: signal 9"):
            child.calls(1)
    finally:
        child.end()


def test_a_child_that_falls_silent_is_ended(model: Artefact) -> None:
    child = ChildProcess(Subject("onnxruntime", model), threads=1)
    try:
        os.kill(child._process.pid, signal.SIGSTOP)
        child._reply_s = 0.2
        with pytest.raises(WorkerDied, match=r"no answer for 0\.2 s"):
            child.prepare(1)
    finally:
        child.end()
    assert child._process.returncode == -signal.SIGKILL


def test_the_childs_worker_imports_no_torch(model: Artefact) -> None:
    child = ChildProcess(Subject("onnxruntime", model), threads=1)
    try:
        child.prepare(1)
        mapped = Path(f"/proc/{child._process.pid}/maps")
        if not mapped.exists():
            pytest.skip("needs /proc to see what a process has loaded")
        assert "libtorch" not in mapped.read_text(encoding="utf-8")
        assert "onnxruntime" in mapped.read_text(encoding="utf-8")
    finally:
        child.end()
