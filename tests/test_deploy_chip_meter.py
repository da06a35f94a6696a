"""The meter of a chip: scripted runners for its arithmetic and its memory, and one real runtime end to end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy_graph import Residual
from torch import nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.predictor import Predictor
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Grid, Recipe, Round
from seatrial.core.search import CannotRun, Reading
from seatrial.core.sites import Site, signature
from seatrial.core.target import Artefact, Target, Timing
from seatrial.deploy import chip_meter
from seatrial.deploy.alternated import alternated_ms, latency_of
from seatrial.deploy.chip_meter import ChipMeter, merged, reading_of
from seatrial.deploy.duel import Bout, Duel, calls_of_a_turn, median_of_a_turn
from seatrial.deploy.energy import EnergyCounter, energy_counter
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.stopwatch import Subject, WorkerDied
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place


@dataclass
class World:
    """A diary of who worked; the machine gets slower with every call by the share `drift`."""

    drift: float = 0.0
    calls: int = 0
    diary: list[str] = field(default_factory=list)
    launched: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    energy_file: Path | None = None
    energy_uj: Mapping[str, int] = field(default_factory=dict)


class Scripted:
    """A runner whose calls take what a table says for its artefact; the first of a turn takes five times that, where
    it is quick."""

    def __init__(self, world: World, ms: Mapping[str, float], subject: Subject, threads: int) -> None:
        self.world, self.ms, self.threads = world, ms, threads
        self.name, self.batch = subject.artefact.path.stem, 0
        world.launched.append(self.name)
        self.number = len(world.launched)

    def open(self, subject: Subject) -> None:
        self.name, self.batch = subject.artefact.path.stem, 0

    def prepare(self, batch: int) -> float:
        self.batch = batch
        if self.ms[self.name] < 0:
            raise WorkerDied(f"measuring {self.name} failed")
        return 1.0

    def calls(self, count: int) -> Sequence[float]:
        assert self.batch, "calls before prepare"
        told = []
        for i in range(count):
            cold = 5 if i == 0 and self.ms[self.name] * self.batch < 15 else 1
            told.append(self.ms[self.name] * self.batch * cold * (1 + self.world.drift * self.world.calls))
            self.world.calls += 1
        self.world.diary.append(f"{self.name}{self.number}:{count}")
        if self.world.energy_file is not None:
            old = int(self.world.energy_file.read_text(encoding="ascii"))
            new = (old + count * self.world.energy_uj[self.name]) % 1_000_000
            self.world.energy_file.write_text(f"{new}\n", encoding="ascii")
        return told

    def end(self) -> None:
        self.world.ended.append(f"{self.number}")


def launcher(world: World, ms: Mapping[str, float]) -> Callable[[Subject, int], Any]:
    return partial(Scripted, world, ms)


def subject(name: str) -> Subject:
    return Subject("made-up", artefact(name))


def artefact(name: str) -> Artefact:
    return Artefact(Path(f"{name}.onnx"), "onnx", "w8a8", {})


# Turns


def test_a_turn_is_as_many_calls_as_fit() -> None:
    world = World()

    def calls(ms: float, round_s: float = 0.03) -> int:
        runner = Scripted(world, {"a": ms}, subject("a"), 1)
        runner.prepare(1)
        return calls_of_a_turn(runner, round_s)  # pyright: ignore[reportArgumentType]

    # One call more than fit, which wakes the process up; of slow ones a single call, which counts.
    assert [calls(ms) for ms in (10.0, 7.0, 0.1, 14.0)] == [4, 6, 201, 4]
    assert calls(15.0) == calls(4000.0) == 1
    assert calls(10.0, round_s=0.1) == 11
    assert median_of_a_turn([99.0, 1.0, 3.0, 2.0]) == 2.0
    assert median_of_a_turn([99.0]) == 99.0


def test_a_runner_is_warmed_up_until_it_gets_no_faster() -> None:
    class Warming(Scripted):
        turns = 0

        def calls(self, count: int) -> Sequence[float]:
            self.turns += 1
            return [20.0 / self.turns] * count

    runner = Warming(World(), {"a": 1.0}, subject("a"), 1)
    # 20, 10, 6.7, 5 and 4 ms: it gets faster all the time, and five turns are enough.
    assert calls_of_a_turn(runner, 0.06) == 16  # pyright: ignore[reportArgumentType]
    assert runner.turns == 5


# A duel


def test_a_duel_tells_ratios_and_alternates() -> None:
    world = World()
    with Duel(subject("base"), 3, batch=2, launch=launcher(world, {"base": 4.0, "one": 2.0, "two": 5.0})) as duel:
        bout = duel.bout(artefact("one"), rounds=4)
        assert bout.challenger_ms == pytest.approx([4.0] * 4)  # two pictures
        assert bout.reference_ms == pytest.approx([8.0] * 4)
        assert bout.ratios == pytest.approx([0.5] * 4)
        assert bout.energy_mj is None
        world.diary.clear()
        other = duel.bout(artefact("two"))
        assert other.ratios == pytest.approx([1.25] * 8)
    # Warmed up in two turns, then the guest first and the home first in turn, each with one call that does not count.
    calls = {"two2": 3 + 1, "base1": 4 + 1}
    turns = ["two2", "base1", "base1", "two2"] * 4
    assert world.diary == ["two2:2", "two2:3", *(f"{name}:{calls[name]}" for name in turns)]
    assert world.launched == ["base", "base"]
    assert world.ended == ["1", "2"]


def test_drift_of_the_machine_cancels() -> None:
    world = World(drift=0.001)
    with Duel(subject("base"), 1, launch=launcher(world, {"base": 5.0, "same": 5.0})) as duel:
        bout = duel.bout(artefact("same"), rounds=20)
    assert bout.challenger_ms[-1] > 1.15 * bout.challenger_ms[0]
    assert float(np.median(bout.ratios)) == pytest.approx(1.0, abs=0.005)


def test_a_bout_counts_the_energy_of_a_call(tmp_path: Path) -> None:
    (tmp_path / "energy_uj").write_text("999000\n", encoding="ascii")  # wraps early on
    world = World(energy_file=tmp_path / "energy_uj", energy_uj={"base": 9000, "one": 2500})
    counter = EnergyCounter((tmp_path / "energy_uj",), (999_999,))
    table = {"base": 4.0, "one": 3.0}
    with Duel(subject("base"), 1, energy=counter, launch=launcher(world, table)) as duel:
        assert duel.bout(artefact("one"), rounds=5).energy_mj == pytest.approx(2.5)


def test_both_processes_are_ended_when_a_challenger_dies() -> None:
    world = World()
    with (
        pytest.raises(WorkerDied, match="broken"),
        Duel(subject("base"), 1, launch=launcher(world, {"base": 4.0, "broken": -1.0})) as duel,
    ):
        duel.bout(artefact("broken"))
    assert world.ended == ["1", "2"]


# Alternated


def test_alternated_rounds_go_forwards_and_backwards() -> None:
    world = World()
    names = ("a", "b", "c")
    table = {"a": 2.0, "b": 4.0, "c": 1.0}
    told = alternated_ms(
        [subject(name) for name in names], threads=2, batch=3, rounds=4, round_s=0.12, launch=launcher(world, table)
    )
    assert told.shape == (4, 3)
    assert told == pytest.approx(np.tile([6.0, 12.0, 3.0], (4, 1)))
    turns = [entry.split(":")[0] for entry in world.diary]
    warm, rounds = turns[:6], turns[6:]
    assert [name for name, _ in groupby(warm)] == ["a1", "b2", "c3"]
    assert rounds == ["a1", "b2", "c3", "c3", "b2", "a1"] * 2
    assert [entry.split(":")[1] for entry in world.diary[6:9]] == ["21", "11", "41"]  # one of them does not count
    assert world.ended == ["1", "2", "3"]


def test_alternated_ratios_do_not_drift() -> None:
    world = World(drift=0.001)
    table = {"a": 20.0, "b": 10.0}
    told = alternated_ms([subject("a"), subject("b")], threads=1, batch=1, launch=launcher(world, table))
    assert told.shape == (40, 2)
    assert float(np.median(told[:, 0] / told[:, 1])) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("broken", ["a", "c"])
def test_whoever_was_launched_is_ended(broken: str) -> None:
    world = World()
    table = {"a": 1.0, "b": 1.0, "c": 1.0} | {broken: -1.0}
    with pytest.raises(WorkerDied):
        alternated_ms([subject(name) for name in "abc"], threads=1, batch=1, launch=launcher(world, table))
    assert len(world.ended) == len(world.launched) == (1 if broken == "a" else 3)


def test_the_latency_of_rounds() -> None:
    told = latency_of(np.arange(1.0, 12.0), batch=4, threads=2)
    assert (told.p10, told.median, told.p90) == (2.0, 6.0, 10.0)
    assert (told.runs, told.batch, told.threads) == (11, 4, 2)


# Readings


def test_a_reading_by_hand() -> None:
    bout = Bout(np.array([1.0, 2.0, 3.0, 4.0, 50.0]), np.array([2.0, 2.0, 2.0, 2.0, 2.0]), energy_mj=7.0)
    told = reading_of(bout, 123)
    # Ratios 0.5, 1, 1.5, 2, 25: the quartiles are 1 and 2, which the outlier does not move.
    assert (told.latency_ms, told.ratio, told.rounds, told.size_bytes, told.energy_mj) == (3.0, 1.5, 5, 123, 7.0)
    assert told.error == pytest.approx(1.2533 * (1.0 / 1.349) / 5**0.5 / 1.5)


def test_the_error_of_a_reading_is_that_of_a_median() -> None:
    """Against the spread of medians over many bouts with normal noise."""
    rng = np.random.default_rng(0)
    told = [reading_of(Bout(rng.normal(2.0, 0.04, 40), np.ones(40)), 1) for _ in range(400)]
    spread = np.std([one.ratio for one in told]) / 2.0
    assert np.mean([one.error for one in told]) == pytest.approx(spread, rel=0.1)


def test_merged_readings_by_hand() -> None:
    one, other = Reading(10.0, 0.5, 0.04, 8, 100, 1.0), Reading(14.0, 0.7, 0.03, 24, 90, 3.0)
    told = merged(one, other)
    assert told.rounds == 32
    assert told.ratio == pytest.approx(0.25 * 0.5 + 0.75 * 0.7)
    assert told.latency_ms == pytest.approx(0.25 * 10 + 0.75 * 14)
    assert told.error == pytest.approx((0.01**2 + 0.0225**2) ** 0.5)
    assert (told.size_bytes, told.energy_mj) == (90, 3.0)  # of the later one
    same = Reading(10.0, 0.5, 0.02, 8, 100)
    assert merged(same, same).error == pytest.approx(0.02 / 2**0.5)


# Energy counters


def zone(folder: Path, name: str, energy_uj: str | None, limit_uj: str | None = "1000000") -> None:
    (folder / name).mkdir(parents=True)
    for file, text in (("energy_uj", energy_uj), ("max_energy_range_uj", limit_uj)):
        if text is not None:
            (folder / name / file).write_text(text + "\n", encoding="ascii")


def test_packages_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "400")
    zone(tmp_path, "intel-rapl:1", "999900", "1000000")
    zone(tmp_path, "intel-rapl:0:0", "77")
    zone(tmp_path, "intel-rapl-mmio:0:0", "5")
    (tmp_path / "intel-rapl").mkdir()
    counter = energy_counter(tmp_path)
    assert counter is not None
    assert counter.name == "rapl"
    before = counter.read_uj()
    assert before == (400, 999900)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2400\n", encoding="ascii")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("99\n", encoding="ascii")  # 100 to the last state, 1 to 0
    assert counter.between_mj(before, counter.read_uj()) == pytest.approx((2000 + 200) / 1000)
    assert counter.between_mj(before, before) == 0.0


def test_zones_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", None)
    zone(tmp_path, "intel-rapl:1", "no number")
    zone(tmp_path, "intel-rapl:2", "5", None)
    assert energy_counter(tmp_path) is None
    zone(tmp_path, "intel-rapl:3", "5", "70")
    told = energy_counter(tmp_path)
    assert told is not None
    assert (told.files, told.ranges_uj) == ((tmp_path / "intel-rapl:3" / "energy_uj",), (70,))


def test_a_machine_without_counters(tmp_path: Path) -> None:
    assert energy_counter(tmp_path) is None
    assert energy_counter(tmp_path / "missing") is None


# The meter and its memory


@dataclass(frozen=True)
class MadeUp(Target):
    """A target whose files hold the number of rounds of their graph; the meter compiles each for itself."""

    hint: str = "f32"
    placement: PlacementRules = field(default=PlacementRules("made-up", "unsigned", operator_outputs=False), repr=False)
    name: str = "made-up"

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32",)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        rounds = sum("qdq" in str(node.target) for node in graph.nodes())
        file = path.with_name(path.name + ".onnx")
        file.write_bytes(b"x" * (100 - rounds))
        return Artefact(file, "onnx", bits, {})

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        raise NotImplementedError

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        raise NotImplementedError


class Sized(Scripted):
    """A runner whose calls take 10 ms, and 1 ms less for each round that its file holds; three rounds break it."""

    def open(self, subject: Subject) -> None:
        super().open(subject)
        rounds = 100 - subject.artefact.path.stat().st_size
        self.ms = {self.name: 10.0 - rounds if rounds < 3 else -1.0}


class Bouts:
    """Duels with scripted runners in place of processes; counts the rounds of each bout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.rounds = World(), list[int | None]()
        bouts = self

        class Counted(Duel):
            def bout(self, artefact: Artefact, *, rounds: int | None = None) -> Bout:
                bouts.rounds.append(rounds)
                return super().bout(artefact, rounds=rounds)

        launch: Any = partial(Sized, self.world, {"reference": 8.0})
        monkeypatch.setattr(chip_meter, "Duel", partial(Counted, launch=launch))


@pytest.fixture
def bouts(monkeypatch: pytest.MonkeyPatch) -> Bouts:
    return Bouts(monkeypatch)


@cache
def small(channels: int = 4) -> Graph:
    torch.manual_seed(0)
    return capture(
        nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 2, 3)), torch.rand(2, 3, 9, 9)
    )


def grid(scale: float = 0.1, bits: int = 8, zero_point: int = 0, signed: bool = False) -> Affine:
    return Affine(bits, signed, torch.tensor(scale), torch.tensor(zero_point))


SITES = tuple(Site.parse(text) for text in ("0/conv2d#0:input0", "1/relu#0:output"))


def recipe(*grids: Grid, graph: Graph | None = None) -> Recipe:
    edits = tuple(Round(site, one) for site, one in zip(SITES, grids, strict=False))
    return Recipe(edits, signature(graph or small()))


def meter(memory: Path | None = None, **changed: Any) -> ChipMeter:
    graph = changed.pop("graph", small())
    every = recipe(grid(), grid(), graph=graph)
    options: dict[str, Any] = {"target": MadeUp(), "threads": 1, "reference": every, "memory": memory} | changed
    return ChipMeter(graph=graph, every=every, **options)


def test_a_meter_times_recipes_against_the_reference(bouts: Bouts) -> None:
    heard: list[Reading] = []
    with meter(told=heard.append) as one:
        two, none = one.time([recipe(grid(), grid()), recipe()])
        assert (two.ratio, two.latency_ms, two.rounds, two.size_bytes) == (1.0, 8.0, 8, 98)
        assert (none.ratio, none.latency_ms, none.size_bytes) == (10 / 8, 10.0, 100)
        assert two.energy_mj is None
        assert heard == [two, none]
        assert one.time([recipe(grid(), grid()), recipe()]) == [two, none]  # known, not measured again
        assert heard == [two, none]
        assert bouts.rounds == [8, 8]
    assert bouts.world.ended == ["1", "2"]


def test_more_rounds_are_merged_into_what_is_known(bouts: Bouts) -> None:
    with meter() as one:
        (first,) = one.time([recipe()], rounds=8)
        (more,) = one.time([recipe()], rounds=20)
        (few,) = one.time([recipe()], rounds=21)  # at least four
        assert [first.rounds, more.rounds, few.rounds] == [8, 20, 24]
        assert one.time([recipe()], rounds=8) == [few]
    assert bouts.rounds == [8, 12, 4]


def test_grids_of_one_kind_are_one_measurement(bouts: Bouts) -> None:
    """Time depends on where rounds stand and of what kind they are, not on their values nor on their order."""
    with meter() as one:
        one.time([recipe(grid(0.1), grid(0.2, zero_point=3)), recipe(grid(0.7), grid(0.3, zero_point=9))])
        rounds = recipe(grid(), grid(zero_point=1)).edits[::-1]
        one.time([Recipe(rounds, signature(small()))])
        assert len(bouts.rounds) == 1
        others = [grid(bits=4), grid(zero_point=1), grid(signed=True), FloatType("bf16")]
        for i, other in enumerate(others):
            one.time([recipe(other)])
            assert len(bouts.rounds) == 2 + i
        one.time([recipe(grid())])
        assert len(bouts.rounds) == 6


def test_files_of_recipes_do_not_pile_up(bouts: Bouts) -> None:
    with meter() as one:
        one.time([recipe(grid()), recipe()])
        folder = one.artefact(recipe(), "mine").path.parent
        assert sorted(file.name for file in folder.iterdir()) == ["mine.onnx", "reference.onnx"]
    assert not folder.exists()
    assert bouts.rounds == [8, 8]


def test_a_second_meter_reads_what_the_first_measured(bouts: Bouts, tmp_path: Path) -> None:
    memory = tmp_path / "measurements.jsonl"
    with meter(memory) as one:
        told = one.time([recipe(grid(), grid()), recipe(grid())])
    launched = len(bouts.world.launched)
    with meter(memory) as other:
        assert other.time([recipe(grid(), grid()), recipe(grid())]) == told
        assert len(bouts.rounds) == 2
        assert len(bouts.world.launched) == launched  # not even a process was started
        (longer,) = other.time([recipe(grid())], rounds=12)
        assert longer.rounds == 12
    assert bouts.rounds == [8, 8, 4]
    lines = [json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 3
    assert {key: value for key, value in lines[0].items() if key != "key"} == asdict(told[0])
    with meter(memory) as third:  # the later line of one recipe counts
        assert third.time([recipe(grid())]) == [longer]


def test_a_line_that_was_half_written_is_measured_again(bouts: Bouts, tmp_path: Path) -> None:
    memory = tmp_path / "measurements.jsonl"
    with meter(memory) as one:
        told = one.time([recipe(grid(), grid()), recipe(grid())])
    text = memory.read_text(encoding="utf-8")
    memory.write_text(text[: len(text) - 30], encoding="utf-8")
    with meter(memory) as other:
        assert other.time([recipe(grid(), grid())]) == told[:1]
        assert bouts.rounds == [8, 8]
        assert other.time([recipe(grid())]) == told[1:]
        assert bouts.rounds == [8, 8, 8]


@pytest.mark.parametrize("line", ["", "[]", "17", "null", "{}", '{"key": "a"}', '{"key": "a", "ratio": 1, "new": 2}'])
def test_other_lines_are_passed_over(bouts: Bouts, tmp_path: Path, line: str) -> None:
    memory = tmp_path / "measurements.jsonl"
    memory.write_text(line + "\n", encoding="utf-8")
    with meter(memory) as one:
        one.time([recipe()])
    with meter(memory) as other:
        other.time([recipe()])
    assert bouts.rounds == [8]


@pytest.mark.parametrize(
    "changed",
    [
        {"graph": small(5)},
        {"batch": 2},
        {"threads": 2},
        {"target": MadeUp(hint="bf16")},
        {"reference": recipe(grid())},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_measurements_are_shared_only_where_everything_is_equal(
    bouts: Bouts, tmp_path: Path, changed: dict[str, Any]
) -> None:
    memory = tmp_path / "measurements.jsonl"
    with meter(memory) as one:
        one.time([recipe()])
    with meter(memory, **changed) as other:
        other.time([recipe(graph=changed.get("graph"))])
    assert len(bouts.rounds) == 2
    for options in ({}, changed):  # both are kept in one file
        with meter(memory, **options) as again:
            again.time([recipe(graph=options.get("graph"))])
    assert len(bouts.rounds) == 2


def test_after_a_recipe_that_cannot_run_the_meter_goes_on(bouts: Bouts) -> None:
    rounds = [Round(Site.parse(text), grid()) for text in ("0/conv2d#0:weight", *map(str, SITES))]
    with meter() as one:
        one.time([recipe()])
        with pytest.raises(CannotRun, match="recipe2"):
            one.time([Recipe(tuple(rounds), signature(small()))])
        assert bouts.world.ended == ["1", "2"]
        assert one.time([recipe(grid())])[0].ratio == 9 / 8
    assert bouts.world.launched == ["reference"] * 4
    assert bouts.world.ended == ["1", "2", "3", "4"]


def test_processes_are_ended_on_any_error(bouts: Bouts) -> None:
    def stop(reading: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), meter(told=stop) as one:
        one.time([recipe()])
    assert bouts.world.ended == ["1", "2"]


# A real runtime


def test_onnx_runtime_end_to_end(tmp_path: Path) -> None:
    """Finite readings of two recipes, from a template; the files answer as the target's own."""
    torch.manual_seed(0)
    pictures = torch.rand(3, 3, 12, 12)
    graph, target = capture(Residual(), pictures[:2]), OnnxRuntime()
    precision = place(graph, target.placement, Bits(8, 8))
    planned = Nearest().plan(graph, [{graph.inputs[0].name: pictures}], precision, rng=generator(0))
    edits = tuple(e for e in planned.edits if not isinstance(e, Round) or "second" not in e.site.path)
    mixed = replace(planned, edits=edits)
    memory = tmp_path / "measurements.jsonl"
    with ChipMeter(target, graph, planned, planned, threads=1, rounds=4, memory=memory) as one:
        told = one.time([planned, mixed])
        for reading in told:
            assert all(np.isfinite(value) and value > 0 for value in (reading.latency_ms, reading.ratio))
            assert np.isfinite(reading.error)
            assert reading.error >= 0
            assert reading.rounds == 4
        assert told[1].size_bytes > told[0].size_bytes  # one weight is float
        mine = one.artefact(mixed, "mine")
        wanted = target.compile(realise(graph, mixed), tmp_path / "wanted", bits="mixed")
        assert mine.settings == wanted.settings
        assert mine.format == wanted.format
        answers = [target.open(each, threads=1)(pictures) for each in (mine, wanted)]
        assert torch.equal(*answers)
    lines = [json.loads(line) for line in memory.read_text(encoding="utf-8").splitlines()]
    assert [{key: value for key, value in line.items() if key != "key"} for line in lines] == list(map(asdict, told))
