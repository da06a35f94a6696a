"""Every noise of the catalogue, swept: a stop, another process or other neighbors leave its records as they were."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from seatrial import catalogue
from seatrial.bench.group import run_batches
from seatrial.bench.outcome import merge
from seatrial.bench.pictures import Pictures
from seatrial.bench.plan import Plan, Subject
from seatrial.bench.processes import run_in_processes
from seatrial.bench.question import cell_of
from seatrial.bench.store import Entry, Store
from seatrial.bench.sweep import sweep
from seatrial.bench.worker import Agenda
from seatrial.core.cell import digest
from seatrial.core.graph import Graph, GraphPredictor, Normalization, capture
from seatrial.core.noise import System
from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import Classification, Task
from seatrial.data.load import load_input
from seatrial.deploy.torch_target import Torch
from seatrial.jobs.noises import parse_noise
from seatrial.jobs.settings import Settings
from seatrial.jobs.variants import OpenVariants, build

SIDE, CLASSES, COUNT, QUERIES = 32, 4, 5, 40
PIPELINE = Pipeline((SIDE, SIDE), Resize(), letterbox=Letterbox())
METHODS = {entry.name: entry for entry in catalogue.ENTRIES if entry.family in catalogue.NOISE_FAMILIES}
UNMET = {"box_offset"}
"""What a classifier has no use for: the cells hold a reason and no records."""


def text_of(method: catalogue.Entry) -> str:
    """Return the method with its last choice, which is none that the pipeline or the network below makes already."""
    choice = method.choices[-1] if method.choices else "linf:8/255"
    bounded = method.family == "attack" and "queries" in signature(catalogue.load(method)).parameters
    return f"{method.name}:{choice}:{QUERIES}" if bounded else f"{method.name}:{choice}"


NOISES = {name: parse_noise(text_of(method)) for name, method in METHODS.items()}
each_noise = pytest.mark.parametrize("name", NOISES)


class Network(nn.Module):
    """A pool that rounds up, maps enlarged in two ways: every edit of a graph finds its operator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 4, 4), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.average, self.head = nn.AvgPool2d(2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.pool(self.stem(x))
        small, size = self.average(fine), fine.shape[-2:]
        fine = fine + functional.interpolate(small, size=size)
        fine = fine + functional.interpolate(small, size=size, mode="bicubic")
        return self.head((fine**2).mean((2, 3)))


def network(inputs: Tensor) -> Graph:
    """Return the captured network; attacks fool it at once on each of the inputs but the third."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(22)
        module = Network().eval()
        module.head.bias += 2 * module((inputs - 0.5) / 0.25).mean(0)
    return capture(module, inputs, normalization=Normalization((0.5,) * 3, (0.25,) * 3))


@dataclass(frozen=True)
class Photographs:
    samples: tuple[Sample, ...]
    name: str = "photographs"
    class_names: tuple[str, ...] = ("a", "b", "c", "d")

    @property
    def ids(self) -> Sequence[str]:
        return [sample.id for sample in self.samples]

    @property
    def labels(self) -> Sequence[int]:
        return [sample.label for sample in self.samples]

    @property
    def digest(self) -> str:
        return digest(*(part for each in self.samples for part in (each.id, str(each.label), each.encoded or b"")))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def photograph(number: int) -> Sample:
    """Return a JPEG picture that is no square and that its EXIF orientation turns."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image, sink, exif = Image.fromarray(coarse).resize((40, 56), Image.Resampling.BICUBIC), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(sink, "JPEG", exif=exif)
    return Sample(f"photo{number}", 0, sink.getvalue())


@dataclass(frozen=True)
class Swept:
    """The whole catalogue, swept by one process without a break."""

    open_subjects: OpenVariants
    subjects: Sequence[Subject]
    plan: Plan
    store: Store

    def plan_of(self, name: str) -> Plan:
        """Return the plan of clean data and this noise, the same questions."""
        return replace(self.plan, noises=(NOISES[name],))

    def entries(self, name: str) -> list[list[Entry]]:
        """Return what each subject answered on clean data and under this noise."""
        plan = self.plan_of(name)
        return [[self.store.read(cell_of(group, each, plan)) for each in self.subjects] for group in plan.groups]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    samples = [photograph(number) for number in range(COUNT)]
    inputs = torch.stack([load_input(PIPELINE, sample) for sample in samples])
    graph = network(inputs)
    labels = GraphPredictor(graph)(inputs).argmax(1).tolist()
    labels[3] = (labels[3] + 1) % CLASSES
    data = Photographs(tuple(replace(sample, label=label) for sample, label in zip(samples, labels, strict=True)))
    folder = tmp_path_factory.mktemp("catalogue")
    exact, rounded = build(graph, Torch(), [inputs], folder / "models", Settings()).variants
    # The integers are attacked by transfer, so both subjects share what is found on the float graph.
    opener = OpenVariants((exact, replace(rounded, surrogate=exact.surrogate)), 1)
    plan = Plan("network", data, PIPELINE, Classification(), tuple(NOISES.values()), batch=2, threads=1)
    store = Store(folder / "store")
    sweep(opener, plan, store)
    return Swept(opener, opener(), plan, store)


@pytest.fixture(scope="module")
def elsewhere(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What a process of its own leaves that goes through the noises from the last to the first."""
    store, plan = Store(tmp_path_factory.mktemp("elsewhere")), replace(swept.plan, noises=swept.plan.noises[::-1])
    agenda = Agenda([str(group) for group in plan.groups], None)
    run_in_processes(swept.open_subjects, plan, store.folder, agenda, jobs=1, retry_failed=False)
    return store


def content(store: Store) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in store.folder.glob("cells/*")}


def content_of(store: Store, entries: Sequence[Entry]) -> dict[str, bytes]:
    keys = [entry.cell.key for entry in entries]
    return {key: (store.folder / "cells" / f"{key}.parquet").read_bytes() for key in keys}


def marks(store: Store) -> dict[str, tuple[int, int]]:
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.folder.glob("cells/*")}


@each_noise
def test_the_noise_is_seen_in_the_records(name: str, swept: Swept) -> None:
    clean, noisy = swept.entries(name)
    assert {entry.status for entry in noisy} <= {"done", "no-noise", "not-applicable"}, noisy
    answered = [(one, other) for one, other in zip(clean, noisy, strict=True) if other.status == "done"]
    assert bool(answered) == (name not in UNMET), [entry.reason for entry in noisy]
    assert all(entry.reason for entry in noisy if entry.status != "done")
    assert all(not other.table["margin"].equals(one.table["margin"]) for one, other in answered)


@each_noise
def test_a_stopped_sweep_goes_on(name: str, swept: Swept, tmp_path: Path) -> None:
    plan, store = swept.plan_of(name), Store(tmp_path)
    clean, noisy = swept.entries(name)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(swept.open_subjects, plan, store, progress=stop)
    assert content(store) == content_of(swept.store, clean)
    # A kill in the middle of a group leaves some of its cells.
    (landed,) = content_of(swept.store, noisy[:1]).items()
    (store.folder / "cells" / f"{landed[0]}.parquet").write_bytes(landed[1])
    kept = marks(store)
    sweep(swept.open_subjects, plan, store)
    assert kept.items() <= marks(store).items()
    assert content(store) == content_of(swept.store, [*clean, *noisy])


@each_noise
def test_another_process_leaves_the_same_files(name: str, swept: Swept, elsewhere: Store) -> None:
    clean, noisy = swept.entries(name)
    assert content_of(elsewhere, [*clean, *noisy]) == content_of(swept.store, [*clean, *noisy])


@each_noise
def test_any_shards_leave_the_same_files(name: str, swept: Swept, tmp_path: Path) -> None:
    store, (_, noisy) = Store(tmp_path), swept.entries(name)
    parts = []
    for share in (1, 0):
        plan = swept.plan_of(name)
        with Pictures(plan) as pictures:
            parts.append(run_batches(plan.groups[1], swept.open_subjects(), plan, pictures, shard=(share, 2)))
    done = [(entry, merge(shards)) for entry, *shards in zip(noisy, *parts, strict=True) if entry.status == "done"]
    for entry, outcome in done:
        store.write(entry.cell, outcome.table, access=outcome.access, bad=outcome.bad)
    assert content(store) == content_of(swept.store, [entry for entry, _ in done])


@dataclass(frozen=True, eq=False)
class Beside(Predictor):
    """The scores of a predictor with the picture that it saw beside them."""

    inner: Predictor

    @property
    def gives(self) -> frozenset[Gift]:
        return frozenset()

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return torch.cat([self.inner(inputs), inputs.flatten(1)], 1)


class Witness(Task):
    """Records of what `Beside` gives."""

    def answer(self, outputs: Tensor, samples: Sequence[Sample], pictures: Sequence[Picture]) -> pa.Table:
        rows = outputs.numpy()
        return pa.table(
            {
                "sample": [sample.id for sample in samples],
                "scores": list(rows[:, :CLASSES]),
                "picture": [digest(row[CLASSES:].tobytes()) for row in rows],
            }
        )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.family != "attack"])
def test_a_picture_does_not_depend_on_its_neighbors(name: str, swept: Swept) -> None:
    subject = swept.subjects[0]

    def alter(system: System) -> Predictor:
        assert subject.alter is not None
        return Beside(subject.alter(system))

    tables = []
    for numbers in (range(COUNT), (1, 4)):
        data = Photographs(tuple(swept.plan.dataset[number] for number in numbers))
        plan = replace(swept.plan_of(name), dataset=data, task=Witness())
        seen = Subject("float", "torch", Beside(subject.predictor), "witness", alter=alter)
        with Pictures(plan) as pictures:
            (outcome,) = run_batches(plan.groups[1], [seen], plan, pictures)
        assert outcome.table is not None, outcome.reason
        tables.append(outcome.table)
    whole, part = tables
    whole = whole.take([1, 4])
    for column in {"sample", "picture", "picture_difference"} & set(part.column_names):
        assert part[column].equals(whole[column])
    np.testing.assert_allclose(part["scores"].to_pylist(), whole["scores"].to_pylist(), rtol=0, atol=1e-5)
