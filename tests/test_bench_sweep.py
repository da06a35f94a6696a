"""The sweep: what each cell holds, against an oracle that takes one sample at a time, and who may compute it.

The toys here (a linear network, four noises) are also what test_bench_kill.py sweeps.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from seatrial.bench import pictures as pictures_module
from seatrial.bench.group import answers, run_batches, sample_generator
from seatrial.bench.outcome import merge
from seatrial.bench.pictures import Pictures
from seatrial.bench.plan import Group, Plan, Subject
from seatrial.bench.question import cell_of, group_key, options
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.core.cell import digest
from seatrial.core.noise import Attack, Corruption, NoiseSpec, Perturbation, System, SystemNoise
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.sample import Sample
from seatrial.core.task import Classification, LabelMap
from seatrial.data.load import load, load_input, to_input
from seatrial.errors import BadInput, NotApplicable

SIDE, CLASSES = 12, 4


@dataclass(frozen=True)
class Pages:
    """`count` noisy PNG pictures, larger than the network's input; `broken` ones are cut short."""

    count: int
    broken: frozenset[int] = frozenset()
    arrays: bool = False
    name: str = "pages"
    class_names: tuple[str, ...] = ("a", "b", "c", "d")

    @property
    def ids(self) -> Sequence[str]:
        return [f"page{i:03}" for i in range(self.count)]

    @property
    def labels(self) -> Sequence[int]:
        return [i % CLASSES for i in range(self.count)]

    @property
    def digest(self) -> str:
        return digest(f"{self.count} {sorted(self.broken)} {self.arrays}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        if self.arrays:
            return Sample(self.ids[index], self.labels[index], array=rng.random((3, SIDE, SIDE), dtype=np.float32))
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(sink, "PNG")
        encoded = sink.getvalue()
        return Sample(self.ids[index], self.labels[index], encoded[: 60 if index in self.broken else None])

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self.count))


@dataclass(frozen=True, eq=False)
class Linear(Predictor):
    """A linear network; `steps` rounds its weights, `fault` is raised at its call number `fault_at`."""

    steps: int = 0
    gifts: frozenset[Gift] = frozenset({"gradients", "logits", "labels"})
    background: int = 0
    delay_s: float = 0.0
    fault: BaseException | None = None
    fault_at: int = 0
    calls: list[int] = field(default_factory=list)

    @property
    def gives(self) -> frozenset[Gift]:
        return self.gifts

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        assert isinstance(inputs, torch.Tensor)
        self.calls.append(len(inputs))
        time.sleep(self.delay_s)
        if self.fault is not None and len(self.calls) > self.fault_at:
            raise self.fault
        weight = torch.from_numpy(np.random.default_rng(0).normal(size=(CLASSES, 3 * SIDE * SIDE)).astype(np.float32))
        if self.steps:
            weight = (weight * self.steps).round() / self.steps
        scores = (inputs - 0.5).flatten(1) @ weight.T
        return torch.cat([torch.full((len(scores), self.background), 1e3), scores], 1)


@dataclass(frozen=True)
class Speckle(Corruption):
    severity: int

    def corrupt(self, picture: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        noise = rng.integers(-20 * self.severity, 20 * self.severity + 1, picture.shape)
        return (picture + noise).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Step(Attack):
    """One signed gradient step with a random start."""

    epsilon: float

    @property
    def needs(self) -> frozenset[Gift]:
        return frozenset({"gradients"})

    def perturb(
        self, predictor: Predictor, inputs: torch.Tensor, labels: torch.Tensor, *, rng: Sequence[np.random.Generator]
    ) -> Perturbation:
        start = np.stack([each.uniform(-self.epsilon, self.epsilon, inputs.shape[1:]) for each in rng])
        point = (inputs + torch.from_numpy(start).float()).requires_grad_()
        torch.nn.functional.cross_entropy(predictor(point), labels, reduction="sum").backward()
        assert point.grad is not None
        found = (inputs + self.epsilon * point.grad.sign()).clamp(0, 1).detach()
        zero = (point.grad == 0).flatten(1).float().mean(1).numpy()
        return Perturbation(found, zero, np.full(len(inputs), 1))


@dataclass(frozen=True)
class Guess(Attack):
    """The first of three random signs that is misclassified; asks for scores only."""

    epsilon: float

    @property
    def needs(self) -> frozenset[Gift]:
        return frozenset({"logits"})

    def perturb(
        self, predictor: Predictor, inputs: torch.Tensor, labels: torch.Tensor, *, rng: Sequence[np.random.Generator]
    ) -> Perturbation:
        found, queries = inputs.clone(), np.zeros(len(inputs), np.int64)
        for _ in range(3):
            sign = np.stack([each.choice([-1.0, 1.0], inputs.shape[1:]) for each in rng])
            standing = predictor(found).argmax(1) == labels
            queries += standing.numpy()
            tried = (inputs + self.epsilon * torch.from_numpy(sign).float()).clamp(0, 1)
            found = torch.where(standing[:, None, None, None], tried, found)
        return Perturbation(found, np.full(len(inputs), np.nan), queries)


@dataclass(frozen=True)
class Nearest(SystemNoise):
    def alter(self, system: System) -> System:
        assert system.pipeline.resize is not None
        return replace(
            system,
            pipeline=replace(system.pipeline, resize=replace(system.pipeline.resize, interpolation="nearest")),
        )


@dataclass(frozen=True)
class Nothing(SystemNoise):
    """Changes the pipeline in a way that no picture shows."""

    def alter(self, system: System) -> System:
        return replace(system, pipeline=replace(system.pipeline, assumed=True))


@dataclass(frozen=True)
class Narrow(SystemNoise):
    def alter(self, system: System) -> System:
        return replace(system, arithmetic="bf16")


@dataclass(frozen=True)
class Impossible(SystemNoise):
    def alter(self, system: System) -> System:
        raise NotApplicable("there is no such choice")


@dataclass(frozen=True)
class Broken(Corruption):
    def corrupt(self, picture: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        raise RuntimeError(f"broken at {hex(id(self))}")


PIPELINE = Pipeline((SIDE, SIDE), Resize(short_side_px=14))
SPECKLE = NoiseSpec("corruption", "speckle", severity=3)
STEP = NoiseSpec("attack", "step", norm="linf", severity="2/255")
GUESS = NoiseSpec("attack", "guess", norm="linf", severity="8/255")
NEAREST = NoiseSpec("system", "resize", option="nearest")
NOTHING = NoiseSpec("system", "nothing")
NARROW = NoiseSpec("system", "precision", option="bf16")
IMPOSSIBLE = NoiseSpec("system", "impossible")
BROKEN = NoiseSpec("corruption", "broken")


@dataclass(frozen=True)
class Make:
    """A noise on demand, as the catalogue gives one."""

    what: Callable[..., Any]
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self) -> Any:
        return self.what(**dict(self.options))


NOISES = (
    (SPECKLE, Make(Speckle, (("severity", 3),))),
    (STEP, Make(Step, (("epsilon", 2 / 255),))),
    (GUESS, Make(Guess, (("epsilon", 8 / 255),))),
    (NEAREST, Make(Nearest)),
    (NOTHING, Make(Nothing)),
    (NARROW, Make(Narrow)),
    (IMPOSSIBLE, Make(Impossible)),
    (BROKEN, Make(Broken)),
)


@dataclass(frozen=True)
class Fleet:
    """Opens the four kinds of subject: a graph, a quantized one, it deployed, and labels from an endpoint."""

    delay_s: float = 0.0
    fault: BaseException | None = None
    fault_at: int = 0
    deadly: bool = False

    def __call__(self) -> list[Subject]:
        if self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        exact, coarse = Linear(delay_s=self.delay_s), Linear(steps=2, delay_s=self.delay_s)
        deployed = Linear(2, frozenset({"logits", "labels"}), 0, self.delay_s, self.fault, self.fault_at)
        endpoint = Linear(gifts=frozenset({"labels"}), delay_s=self.delay_s)
        return [
            Subject("float", "torch", exact, "float", exact, _narrowed),
            Subject("w8a8", "torch", coarse, "w8a8", coarse, _narrowed),
            Subject("w8a8", "chip", deployed, "w8a8 chip", coarse),
            Subject("float", "http", endpoint, "http"),
        ]


def _narrowed(system: System) -> Predictor:
    return Linear(steps=1)


def a_plan(count: int = 22, **changes: Any) -> Plan:
    parts = {"model": "toy", "dataset": Pages(count), "pipeline": PIPELINE, "task": Classification(), "batch": 8}
    return Plan(**{**parts, "noises": NOISES, "threads": 1, "libraries": {"pillow": "1"}, **changes})


def group_of(plan: Plan, spec: NoiseSpec | None) -> Group:
    return next(group for group in plan.groups if group.spec == spec)


def files(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.folder / "cells").iterdir()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[tuple[int, int, str]]]:
    store, seen = Store(tmp_path_factory.mktemp("swept")), []
    sweep(Fleet(), a_plan(), store, progress=lambda *each: seen.append(each))
    return store, seen


def entry(store: Store, spec: NoiseSpec | None, which: int):
    plan = a_plan()
    return store.read(cell_of(group_of(plan, spec), Fleet()()[which], plan))


def test_every_question_has_a_cell_and_progress_counts_groups(swept) -> None:
    store, seen = swept
    found = Counter((cell.cell.noise.name if cell.cell.noise else "clean", cell.status) for cell in store.cells())
    assert found == {
        ("clean", "done"): 4,
        ("speckle", "done"): 4,
        ("step", "done"): 3,
        ("step", "not-applicable"): 1,
        ("guess", "done"): 3,
        ("guess", "not-applicable"): 1,
        ("resize", "done"): 4,
        ("nothing", "no-noise"): 4,
        ("precision", "done"): 2,
        ("precision", "not-applicable"): 2,
        ("impossible", "not-applicable"): 4,
        ("broken", "failed"): 4,
    }
    names = ["clean", "speckle:3", "step:linf:2/255", "guess:linf:8/255", "resize:nearest", "nothing"]
    names += ["precision:bf16", "impossible", "broken"]
    assert seen == [(i + 1, 9, name) for i, name in enumerate(names)]


def test_clean_and_corrupted_records_are_those_of_single_samples(swept) -> None:
    store, _ = swept
    model = Linear(steps=2)
    for spec in (None, SPECKLE):
        rows = entry(store, spec, 1).table.to_pylist()
        assert [row["sample"] for row in rows] == list(Pages(22).ids)
        for row, sample in zip(rows, Pages(22), strict=True):
            picture = load(PIPELINE, sample)
            if spec is not None:
                chance = sample_generator(0, spec, sample.id)
                picture = replace(picture, pixels=Speckle(3).corrupt(picture.pixels, rng=chance))
            scores = model(to_input(picture)[None])[0]
            others = torch.cat([scores[: sample.label], scores[sample.label + 1 :]])
            assert row["answer"] == int(scores.argmax())
            assert row["correct"] == (row["answer"] == sample.label)
            assert row["margin"] == pytest.approx(float(scores[sample.label] - others.max()), rel=1e-4, abs=1e-4)


def test_attacks_look_into_the_surrogate_and_are_judged_on_the_deployed(swept) -> None:
    store, _ = swept
    accesses = [entry(store, STEP, which).access for which in range(4)]
    assert accesses == ["white-box", "white-box", "transfer", None]
    assert [entry(store, GUESS, which).access for which in range(4)] == ["score", "score", "score", None]
    assert entry(store, None, 0).access is None
    samples, plan = list(Pages(22)), a_plan()
    for numbers in plan.batches:
        chosen = [samples[i] for i in numbers]
        inputs = torch.stack([load_input(PIPELINE, sample) for sample in chosen])
        labels = torch.tensor([sample.label for sample in chosen])
        chance = [sample_generator(0, STEP, sample.id) for sample in chosen]
        found = Step(2 / 255).perturb(Linear(steps=2), inputs, labels, rng=chance)
        wanted = Classification().answer(Linear(steps=2)(found.inputs), chosen, ())
        for which in (1, 2):  # white-box on the simulation, transfer to the same function deployed
            table = entry(store, STEP, which).table.slice(numbers[0], len(numbers))
            assert table.select(wanted.column_names).equals(wanted)
            assert table["queries"].to_pylist() == [1] * len(chosen)
            np.testing.assert_array_equal(table["zero_gradient"].to_numpy(), found.zero_gradient)
    drop = [entry(store, spec, 0).table["margin"].to_numpy().mean() for spec in (None, STEP)]
    assert drop[1] < drop[0]


def test_system_noise_says_how_far_pictures_moved(swept) -> None:
    store, _ = swept
    altered = Nearest().alter(System(PIPELINE)).pipeline
    for row, sample in zip(entry(store, NEAREST, 0).table.to_pylist(), Pages(22), strict=True):
        first, second = load(PIPELINE, sample).pixels.astype(float), load(altered, sample).pixels.astype(float)
        assert row["picture_difference"] == pytest.approx(np.abs(first - second).mean(), rel=1e-5)
        assert row["picture_difference"] > 0
    table = entry(store, NARROW, 0).table
    assert set(table["picture_difference"].to_pylist()) == {0.0}
    assert not table["margin"].equals(entry(store, None, 0).table["margin"])


def test_cells_without_an_answer_say_why(swept) -> None:
    store, _ = swept
    assert "identical" in entry(store, NOTHING, 0).reason
    assert "pillow" in entry(store, NOTHING, 0).reason
    assert "bf16" in entry(store, NARROW, 2).reason
    assert "gradients" in entry(store, STEP, 3).reason
    assert entry(store, IMPOSSIBLE, 0).reason == "there is no such choice"
    assert entry(store, BROKEN, 0).reason == "RuntimeError: broken at 0x..."


def test_a_resumed_sweep_computes_nothing_again(swept, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = swept
    before = {path: path.stat().st_mtime_ns for path in (store.folder / "cells").iterdir()}
    fleet = Fleet()()
    sweep(lambda: fleet, a_plan(), store)
    assert not any(subject.predictor.calls for subject in fleet)
    assert before == {path: path.stat().st_mtime_ns for path in (store.folder / "cells").iterdir()}


def test_pictures_and_attacks_are_computed_once_for_all_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Counter[str] = Counter()

    def counting(pipeline: Pipeline, sample: Sample):
        loaded[sample.id] += 1
        return load(pipeline, sample)

    monkeypatch.setattr(pictures_module, "load", counting)
    plan, fleet = a_plan(16, noises=NOISES[:2]), Fleet()()
    sweep(lambda: fleet, plan, Store(tmp_path))
    assert set(loaded.values()) == {3}  # clean, speckle, step
    calls = [len(subject.predictor.calls) for subject in fleet]
    # Two batches in three groups, and one forward pass of the attack for each distinct surrogate.
    assert calls == [6 + 2, 6 + 2, 6, 4]


@pytest.mark.parametrize("spec", [None, *(spec for spec, _ in NOISES)])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_shard_law(spec: NoiseSpec | None, shards: int) -> None:
    plan = a_plan(21, dataset=Pages(21, broken=frozenset({4})), batch=2)
    group, fleet = group_of(plan, spec), Fleet(fault=RuntimeError("late"), fault_at=100)()
    with Pictures(plan) as pictures:
        whole = run_batches(group, fleet, plan, pictures)
        parts = [run_batches(group, fleet, plan, pictures, shard=(i, shards)) for i in reversed(range(shards))]
    assert len(plan.batches) == 11
    for one, many in zip(whole, zip(*parts, strict=True), strict=True):
        one, merged = merge([one]), merge(many)
        assert (merged.status, merged.reason, merged.access) == (one.status, one.reason, one.access)
        assert (merged.ended_at, dict(merged.bad)) == (one.ended_at, dict(one.bad))
        assert (merged.table is None) == (one.table is None)
        if one.table is not None and merged.table is not None:
            assert merged.table.num_rows == 20
            assert _bytes(merged.table) == _bytes(one.table)


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def test_a_failure_says_the_same_for_any_shard() -> None:
    plan = a_plan(12, batch=2, noises=())

    @dataclass(frozen=True, eq=False)
    class Picky(Predictor):
        gives: frozenset[Gift] = frozenset({"logits"})

        def __call__(self, inputs: Inputs) -> torch.Tensor:
            assert isinstance(inputs, torch.Tensor)
            if torch.equal(inputs[0], load_input(PIPELINE, Pages(12)[6])) or len(inputs) == 1:
                raise ValueError("not this batch")
            return torch.zeros(len(inputs), CLASSES)

    subject = Subject("float", "torch", Picky(), "picky")
    with Pictures(plan) as pictures:
        for shards in (1, 2, 7):
            parts = [
                run_batches(plan.groups[0], [subject], plan, pictures, shard=(i, shards))[0] for i in range(shards)
            ]
            merged = merge(parts)
            assert (merged.status, merged.reason, merged.ended_at) == ("failed", "ValueError: not this batch", 3)


def test_one_cell_that_fails_leaves_the_others_and_is_retried_only_when_asked(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), a_plan(noises=NOISES[:1])
    sweep(Fleet(fault=RuntimeError("the driver\n is lost"), fault_at=1), plan, store)
    failed = [each for each in store.cells() if each.status == "failed"]
    assert [(each.cell.target, each.reason) for each in failed] == [("chip", "RuntimeError: the driver is lost")] * 2
    assert len(store.cells()) == 8
    before = files(store)
    sweep(Fleet(), plan, store)
    assert files(store) == before
    sweep(Fleet(), plan, store, retry_failed=True)
    assert {each.status for each in store.cells()} == {"done"}
    fresh = Store(tmp_path / "fresh")
    sweep(Fleet(), plan, fresh)
    assert files(store) == files(fresh)


def test_what_the_user_has_to_mend_ends_the_sweep(tmp_path: Path) -> None:
    store = Store(tmp_path)
    wrong = BadInput("an output of shape (1,)", "[batch, classes]", "pass a classifier")
    with pytest.raises(BadInput, match="classifier"):
        sweep(Fleet(fault=wrong, fault_at=3), a_plan(noises=NOISES[:1]), store)
    assert len(store.cells()) == 4


def test_ctrl_c_leaves_whole_cells_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store, plan = Store(tmp_path / "a"), a_plan()
    with pytest.raises(KeyboardInterrupt):
        sweep(Fleet(fault=KeyboardInterrupt(), fault_at=4), plan, store)
    assert len(files(store)) == 4
    sweep(Fleet(), plan, store)
    fresh = Store(tmp_path / "b")
    sweep(Fleet(), plan, fresh)
    assert files(store) == files(fresh)


def test_a_disk_that_fills_up_ends_the_sweep_and_finished_cells_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, room = Store(tmp_path), [6]
    honest = os.fsync

    def filling(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(handle)

    monkeypatch.setattr(os, "fsync", filling)  # a file and its folder for each cell
    with pytest.raises(BadInput, match="is full"):
        sweep(Fleet(), a_plan(noises=()), store)
    monkeypatch.undo()
    assert len(files(store)) == 3
    sweep(Fleet(), a_plan(noises=()), store)
    assert len(store.cells()) == 4


def test_bad_samples_are_listed_and_the_rest_is_answered(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), a_plan(dataset=Pages(22, broken=frozenset({3, 9})), noises=NOISES[:4])
    sweep(Fleet(), plan, store)
    for cell in store.cells():
        if cell.status == "done":
            full = store.read(cell.cell)
            assert full.table.num_rows == 20
            assert set(full.bad) == {"page003", "page009"}
    none = a_plan(4, dataset=Pages(4, broken=frozenset(range(4))), noises=(NOISES[4],))
    with Pictures(none) as pictures:
        for group in none.groups:
            (outcome,) = answers(group, Fleet()()[:1], none, pictures)
            assert outcome.status == "failed"
            assert "first 'page000'" in str(outcome.reason)


def test_arrays_are_seen_unrounded() -> None:
    plan = a_plan(dataset=Pages(22, arrays=True), noises=(NOISES[3],))
    with Pictures(plan) as pictures:
        (clean,), (system,) = (answers(group, Fleet()()[:1], plan, pictures) for group in plan.groups)
    inputs = torch.stack([torch.from_numpy(sample.array) for sample in plan.dataset])
    wanted = Linear()(inputs).argmax(1).tolist()
    assert clean.table is not None
    assert clean.table["answer"].to_pylist() == wanted
    assert system.status == "not-applicable"  # nothing is decoded or resized


def test_attacks_count_the_background_output() -> None:
    task = Classification(LabelMap(background=1))
    plan, plain = a_plan(task=task, noises=NOISES[1:3]), a_plan(noises=NOISES[1:3])
    shifted = Linear(background=1)
    for number in (1, 2):
        with Pictures(plan) as pictures:
            subject = Subject("float", "torch", shifted, "b", shifted)
            (with_background,) = answers(plan.groups[number], [subject], plan, pictures)
            (without,) = answers(plain.groups[number], Fleet()()[:1], plain, pictures)
        assert with_background.table is not None
        assert without.table is not None
        if number == 1:  # the constant background takes all the confidence, so gradients keep their sign only
            agree = np.mean(with_background.table["answer"].to_numpy() == without.table["answer"].to_numpy())
            assert agree > 0.9
        assert with_background.table["correct"].to_numpy().mean() <= 0.5


def test_the_key_depends_on_all_that_decides_the_answers() -> None:
    plan, subject = a_plan(), Fleet()()[0]
    group = group_of(plan, STEP)
    key = cell_of(group, subject, plan).key
    assert key == cell_of(group_of(a_plan(), STEP), Fleet()()[0], a_plan()).key
    assert key == cell_of(group, subject, replace(plan, cache_gb=1.0)).key
    others = [
        cell_of(group, subject, replace(plan, **change)).key
        for change in (
            {"model": "other"},
            {"dataset": Pages(23)},
            {"pipeline": replace(PIPELINE, decoder="opencv")},
            {"task": Classification(LabelMap(background=1))},
            {"seed": 1},
            {"batch": 9},
            {"threads": 2},
            {"libraries": {"pillow": "2"}},
        )
    ]
    others += [
        cell_of(group, replace(subject, **change), plan).key
        for change in ({"name": "w8a8"}, {"target": "chip"}, {"digest": "other"}, {"surrogate": None})
    ]
    others += [cell_of(group_of(plan, spec), subject, plan).key for spec in (None, GUESS, NARROW)]
    others.append(cell_of(Group(STEP, Step(3 / 255)), subject, plan).key)
    assert len({key, *others}) == 1 + len(others)
    assert group_key(group, plan) != group_key(group_of(plan, GUESS), plan)


def test_options_must_be_plain_data() -> None:
    @dataclass
    class Odd:
        size: Any
        _hidden: object = field(default_factory=object)

    assert options(Odd((1, np.float32(0.5), {"a": float("inf")}))) == {"size": [1, 0.5, {"a": "inf"}]}
    with pytest.raises(TypeError, match=r"Odd\.size is a Generator"):
        options(Odd(np.random.default_rng(0)))


def test_a_plan_refuses_what_cannot_run() -> None:
    for change in ({"batch": 0}, {"threads": 0}, {"dataset": Pages(0)}):
        with pytest.raises(BadInput):
            a_plan(**change)
    with pytest.raises(BadInput):
        sweep(Fleet(), a_plan(), Store.__new__(Store), jobs=0)


def test_the_cache_changes_nothing_but_saves_loading(swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Counter[str] = Counter()

    def counting(pipeline: Pipeline, sample: Sample):
        loaded[sample.id] += 1
        return load(pipeline, sample)

    monkeypatch.setattr(pictures_module, "load", counting)
    store = Store(tmp_path)
    sweep(Fleet(), a_plan(cache_gb=0.01), store)
    assert files(store) == files(swept[0])
    assert set(loaded.values()) == {3}  # as it is, to the nearest, and with nothing changed


def test_torch_threads_are_given_back(tmp_path: Path) -> None:
    before, seen = torch.get_num_threads(), []

    @dataclass(frozen=True, eq=False)
    class Watching(Predictor):
        gives: frozenset[Gift] = frozenset({"logits"})

        def __call__(self, inputs: Inputs) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return torch.zeros(len(inputs), CLASSES)

    sweep(lambda: [Subject("float", "torch", Watching(), "w")], a_plan(8, threads=3, noises=()), Store(tmp_path))
    assert seen == [3]
    assert torch.get_num_threads() == before
