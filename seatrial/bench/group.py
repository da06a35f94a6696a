"""One noise for all subjects: each batch is loaded and corrupted once, and every variant answers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from seatrial.bench.outcome import Outcome, attempt, merge
from seatrial.bench.pictures import Pictures
from seatrial.bench.plan import Group, Plan, Subject
from seatrial.bench.question import cell_of, group_key, victim_of
from seatrial.bench.references import References, moved, picture_difference, unequal_rows
from seatrial.bench.store import Store
from seatrial.core.cell import Cell
from seatrial.core.chance import generator
from seatrial.core.noise import Access, Attack, Corruption, NoiseSpec, Perturbation, System, SystemNoise
from seatrial.core.predictor import Predictor
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import Classification, Task
from seatrial.data.decode import library_builds
from seatrial.data.load import load_input, to_inputs
from seatrial.errors import NoNoise, NotApplicable

_MOVED = ("picture_difference", "output_difference", "answer_moved")


def run_group(
    group: Group,
    subjects: Sequence[Subject],
    plan: Plan,
    store: Store,
    pictures: Pictures,
    *,
    references: References | None = None,
    wait: bool = True,
    retry_failed: bool = False,
) -> bool:
    """Finish the cells of one noise that are not finished yet; return False where another process has the group.

    A cell that cannot be answered is written with its reason and never ends the sweep. Raises BadInput for a full
    folder and whatever else the user has to mend.
    """
    cells = [cell_of(group, subject, plan) for subject in subjects]

    def open_cells() -> list[int]:
        return [i for i, cell in enumerate(cells) if not _finished(store, cell, retry_failed)]

    if not open_cells():
        return True
    with store.claim(group_key(group, plan), wait=wait) as mine:
        if not mine:
            return False
        wanted = open_cells()  # again, because another process may have finished some before the claim
        outcomes = answers(group, [subjects[i] for i in wanted], plan, pictures, references) if wanted else []
        for i, outcome in zip(wanted, outcomes, strict=True):
            store.write(
                cells[i],
                outcome.table,
                status=outcome.status,
                reason=outcome.reason,
                access=outcome.access,
                bad=outcome.bad,
                replace=retry_failed,
            )
    return True


def answers(
    group: Group,
    subjects: Sequence[Subject],
    plan: Plan,
    pictures: Pictures,
    references: References | None = None,
) -> list[Outcome]:
    """Return the outcome of each subject over all batches; a system noise that moves nothing is no noise."""
    nothing = _no_noise(group, plan, pictures)
    if nothing is not None:
        return [nothing] * len(subjects)
    found = [merge([outcome]) for outcome in run_batches(group, subjects, plan, pictures, references=references)]
    return [_unmoved(outcome) or outcome for outcome in found] if isinstance(group.noise, SystemNoise) else found


def run_batches(
    group: Group,
    subjects: Sequence[Subject],
    plan: Plan,
    pictures: Pictures,
    *,
    shard: tuple[int, int] = (0, 1),
    references: References | None = None,
) -> list[Outcome]:
    """Return the outcome of each subject on the batches whose number is `shard[0]` modulo `shard[1]`.

    Law: `merge` of all shards gives the same records for any number of shards.
    """
    share, shares = shard
    if not 0 <= share < shares:
        raise ValueError(f"shard {share} of {shares}")
    bench = _Bench(group, plan, pictures, references or References())
    with _threads(plan.threads), _altered(bench, subjects) as predictors:
        runs = [_Run(subject, predictor, _access(group, subject)) for subject, predictor in zip(subjects, predictors)]
        for number in range(share, len(plan.batches), shares):
            live = [run for run in runs if run.ended is None]
            if live:
                bench.batch(number, live)
        return [run.ended or Outcome("done", None, run.access, run.tables, run.bad) for run in runs]


def sample_generator(seed: int, spec: NoiseSpec, sample: str) -> np.random.Generator:
    """Return the randomness of one sample under one noise, so that a report can draw the same picture again."""
    return generator(seed, spec.name, spec.option, spec.severity, sample)


@dataclass(eq=False)
class _Run:
    """A subject on its way through the batches."""

    subject: Subject
    predictor: Predictor | Outcome

    access: Access | None

    def __post_init__(self) -> None:
        self.tables: dict[int, pa.Table] = {}
        self.bad: dict[str, str] = {}
        self.ended: Outcome | None = None


@dataclass(frozen=True, eq=False)
class _Scene:
    """One batch as the subjects see it, with the columns that it adds to their records."""

    samples: list[Sample]
    pictures: list[Picture]
    inputs: Tensor
    columns: dict[str, pa.Array]
    bad: dict[str, str]
    undisturbed: Tensor
    """The same samples as the pipeline of the plan loads them; `inputs` itself for all but system noises."""

    @property
    def ids(self) -> list[str]:
        return [sample.id for sample in self.samples]


@final
class _Bench:
    def __init__(self, group: Group, plan: Plan, pictures: Pictures, references: References) -> None:
        self.group, self.plan, self.pictures, self.references = group, plan, pictures, references
        self.task = plan.task
        """The task as this noise has it; only a noise that moves boxes has another."""

    @property
    def system(self) -> System:
        return System(self.plan.pipeline)

    def batch(self, number: int, runs: Sequence[_Run]) -> None:
        scene = attempt(lambda: self._scene(number), number)
        perturbed: dict[int, Perturbation | Outcome] = {}
        for run in runs:
            result = scene if isinstance(scene, Outcome) else None
            if isinstance(scene, _Scene):
                run.bad.update(scene.bad)
                if not scene.samples:
                    continue
                result = attempt(lambda run=run: self._judge(run, scene, perturbed, number), number)
            if isinstance(result, Outcome):
                run.ended = replace(result, access=run.access)
            elif result is not None:
                run.tables[number] = result

    def _scene(self, number: int) -> _Scene:
        noise, spec, plan = self.group.noise, self.group.spec, self.plan
        loaded = self.pictures.batch(number, plan.pipeline)
        bad = dict(loaded.bad)
        columns: dict[str, pa.Array] = {}
        pairs = list(zip(loaded.samples, loaded.pictures, strict=True))
        undisturbed: Tensor | None = None
        if isinstance(noise, SystemNoise):
            pipeline = noise.alter(self.system).pipeline
            other = loaded if pipeline == plan.pipeline else self.pictures.batch(number, pipeline)
            found = {sample.id: picture for sample, picture in zip(other.samples, other.pictures, strict=True)}
            bad = {**other.bad, **bad}
            pairs = [(sample, picture) for sample, picture in pairs if sample.id in found]
            moved = [picture_difference(picture, found[sample.id]) for sample, picture in pairs]
            columns["picture_difference"] = pa.array(moved, pa.float32())
            if any(moved):
                undisturbed = self._inputs(pairs)
            pairs = [(sample, found[sample.id]) for sample, _ in pairs]
        if isinstance(noise, Corruption):
            assert spec is not None

            def corrupted(pair: tuple[Sample, Picture]) -> Picture:
                sample, picture = pair
                pixels = noise.corrupt(picture.pixels, rng=sample_generator(plan.seed, spec, sample.id))
                return replace(picture, pixels=pixels)

            shown = self.pictures.map(corrupted, pairs)
            inputs = to_inputs(shown) if shown else torch.empty(0)
        else:
            inputs = self._inputs(pairs)
        samples, pictures = [sample for sample, _ in pairs], [picture for _, picture in pairs]
        return _Scene(samples, pictures, inputs, columns, bad, inputs if undisturbed is None else undisturbed)

    def _inputs(self, pairs: Sequence[tuple[Sample, Picture]]) -> Tensor:
        if not pairs:
            return torch.empty(0)
        if all(sample.array is None for sample, _ in pairs):
            return to_inputs([picture for _, picture in pairs])
        # An array sample is seen unrounded, as it came.
        return torch.stack([load_input(self.plan.pipeline, sample) for sample, _ in pairs])

    def _judge(
        self, run: _Run, scene: _Scene, perturbed: dict[int, Perturbation | Outcome], number: int
    ) -> pa.Table | Outcome:
        if isinstance(run.predictor, Outcome):
            return replace(run.predictor, ended_at=number)
        inputs, columns = scene.inputs, scene.columns
        if isinstance(self.group.noise, Attack):
            victim, _ = victim_of(self.group, run.subject)
            if victim is None:
                raise NotApplicable(_no_victim(self.group, run.subject))
            # Subjects that share a surrogate share what was found on it.
            if id(victim) not in perturbed:
                attack = self.group.noise
                perturbed[id(victim)] = attempt(lambda: self._perturb(attack, victim, scene), number)
            found = perturbed[id(victim)]
            if isinstance(found, Outcome):
                return found
            inputs = found.inputs
            columns = {
                "zero_gradient": pa.array(np.asarray(found.zero_gradient, dtype=np.float32)),
                "queries": pa.array(np.asarray(found.queries, dtype=np.int64)),
            }
        with torch.no_grad():
            outputs = run.predictor(inputs)
            table = self.task.answer(outputs, scene.samples, scene.pictures)
            if isinstance(self.group.noise, SystemNoise):
                reference = self.references.outputs(run.subject.predictor, scene.ids, scene.undisturbed)
                columns = {**columns, **moved(self.task, reference, outputs, len(scene.ids))}
            if self.task is not self.plan.task:
                otherwise = self.plan.task.answer(outputs, scene.samples, scene.pictures)
                columns["answer_moved"] = unequal_rows(table, otherwise)
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def _perturb(self, attack: Attack, victim: Predictor, scene: _Scene) -> Perturbation:
        if not isinstance(self.plan.task, Classification):
            raise NotApplicable(f"attacks are on the class of a picture, and {type(self.plan.task).__name__} has none")
        assert self.group.spec is not None
        chance = [sample_generator(self.plan.seed, self.group.spec, name) for name in scene.ids]
        labels = torch.tensor([sample.label for sample in scene.samples], dtype=torch.int64) + _background(
            self.plan.task
        )
        return attack.perturb(victim, scene.inputs, labels, rng=chance)


def _no_noise(group: Group, plan: Plan, pictures: Pictures) -> Outcome | None:
    """Return why a system noise has no cell of its own on this build, None where it has."""
    noise = group.noise
    if not isinstance(noise, SystemNoise):
        return None
    system = System(plan.pipeline)

    def look() -> None:
        altered = noise.alter(system)
        if altered.pipeline != system.pipeline and plan.dataset[0].encoded is None:
            raise NotApplicable("the samples are arrays at network size: nothing is decoded or resized")
        if altered.boxes != system.boxes and type(plan.task).under is Task.under:
            plan.task.under(altered.boxes)  # refuses: such a task decodes none
        if replace(altered, pipeline=system.pipeline) == system and pictures.same(system.pipeline, altered.pipeline):
            raise NoNoise(f"all {len(plan.dataset)} pictures are identical on this build ({_builds()})")

    return attempt(look, 0)


def _unmoved(outcome: Outcome) -> Outcome | None:
    """Return that a system noise left every picture and every output as it was, None where it did not."""
    table = outcome.table
    if table is None or any(np.any(table.column(name)) for name in _MOVED if name in table.column_names):
        return None
    return Outcome("no-noise", f"all {len(table)} outputs are identical on this build ({_builds()})", ended_at=0)


def _builds() -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(library_builds().items()))


def _no_victim(group: Group, subject: Subject) -> str:
    if group.spec is not None and group.spec.from_float:
        return f"{subject.name} on {subject.target} has no float parent to find the attack on"
    assert isinstance(group.noise, Attack)
    if "gradients" in group.noise.needs:
        return (
            f"the attack needs gradients, and {subject.target} gives none and has no surrogate; square, which needs "
            "scores, and hopskipjump, which needs labels, would work"
        )
    return f"the attack needs {' and '.join(sorted(group.noise.needs))}, and {subject.target} gives no scores"


@contextmanager
def _altered(bench: _Bench, subjects: Sequence[Subject]) -> Iterator[list[Predictor | Outcome]]:
    """Give each subject's predictor under the group's arithmetic, or why it has none; frees those made for it."""
    noise = bench.group.noise
    opened: list[Predictor | Outcome] = [subject.predictor for subject in subjects]
    if isinstance(noise, SystemNoise):
        system = attempt(lambda: noise.alter(bench.system), 0)
        if isinstance(system, Outcome):
            opened = [system] * len(subjects)
        elif replace(system, pipeline=bench.system.pipeline) != bench.system:
            opened = _in_system(bench, subjects, system)
    try:
        yield opened
    finally:
        for subject, predictor in zip(subjects, opened, strict=True):
            if isinstance(predictor, Predictor) and predictor is not subject.predictor:
                predictor.close()


def _in_system(bench: _Bench, subjects: Sequence[Subject], system: System) -> list[Predictor | Outcome]:
    """Return each subject's predictor in a system with another arithmetic, other operators or other boxes.

    Boxes that the task decodes are decoded otherwise there; a detector that decodes its own is altered itself.
    """
    computed = replace(system, pipeline=bench.system.pipeline)
    if system.boxes != bench.system.boxes:
        task = attempt(lambda: bench.plan.task.under(system.boxes), 0)
        if isinstance(task, Outcome):
            return [attempt(partial(_under, s, system, False), 0) if s.alter else task for s in subjects]
        bench.task, computed = task, replace(computed, boxes=bench.system.boxes)
    if computed == bench.system:
        return [subject.predictor for subject in subjects]
    otherwise = replace(system, arithmetic="as-is", graph=()) != bench.system
    return [attempt(partial(_under, subject, system, otherwise), 0) for subject in subjects]


def _under(subject: Subject, system: System, otherwise: bool) -> Predictor:
    """Return the predictor in another system; `otherwise` says that more than its arithmetic and operators differs."""
    if subject.alter is None:
        wanted = [*system.graph, *([] if system.arithmetic == "as-is" else [system.arithmetic])]
        raise NotApplicable(f"{subject.name} on {subject.target} cannot run with {' and '.join(wanted)}")
    try:
        return subject.alter(system)
    except NoNoise:
        if not otherwise:
            raise
        return subject.predictor


def _access(group: Group, subject: Subject) -> Access | None:
    return victim_of(group, subject)[1]


def _finished(store: Store, cell: Cell, retry_failed: bool) -> bool:
    return store.has(cell) and not (retry_failed and store.read(cell).status == "failed")


def _background(task: Task) -> int:
    """How many outputs stand before the first class: an attack counts outputs, not classes."""
    return task.labels.background if isinstance(task, Classification) else 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run PyTorch on `count` threads, because sums depend on it; the former number comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
