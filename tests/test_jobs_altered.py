"""Variants in another system: files answer as their simulation, integers keep the plan of the float graph."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seatrial.bench.group import answers
from seatrial.bench.pictures import Pictures
from seatrial.bench.plan import Group, Plan
from seatrial.bench.plan import Subject as SweptSubject
from seatrial.core.alter_graph import altered
from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.noise import System
from seatrial.core.target import Artefact
from seatrial.core.task import Classification, LabelMap
from seatrial.data.digits import digits_split
from seatrial.data.draw import limit
from seatrial.data.load import default_pipeline
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.torch_target import torch_threads
from seatrial.errors import NoNoise, NotApplicable
from seatrial.jobs.altered import Altered
from seatrial.jobs.noises import parse_noise
from seatrial.jobs.settings import Settings
from seatrial.jobs.variants import Built, OpenVariants, Variant, build, float_only
from seatrial.numerics.layout import lay_out

PIPELINE = default_pipeline((32, 32))
CEIL = System(PIPELINE, graph=("ceil_mode",))
INTEGERS = System(PIPELINE, arithmetic="int8")
ALL = System(PIPELINE, graph=("ceil_mode", "upsample:bilinear"), arithmetic="int8")


class Joined(nn.Module):
    """Pools of both kinds, a sum with an enlarged map, ten classes; 32 px."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2)
        self.next, self.average = nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(2)
        self.coarse, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.next(self.pool(self.stem(x).relu())).relu()
        large = functional.interpolate(self.coarse(self.average(fine)).relu(), size=fine.shape[-2:])
        return self.head(((fine + large) ** 2).mean((2, 3)))


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def graph() -> Graph:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Joined().eval()
    return capture(module, pictures(2), normalization=Normalization((0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def built(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(graph, OnnxRuntime(), [pictures(8)], tmp_path_factory.mktemp("built"), Settings())


@pytest.fixture(scope="module")
def subjects(built: Built) -> dict[str, SweptSubject]:
    return {f"{subject.name}@{subject.target}": subject for subject in OpenVariants(built.variants, 1)()}


def answer(subject: SweptSubject, system: System) -> Tensor:
    assert subject.alter is not None
    predictor = subject.alter(system)
    with torch.no_grad():
        found = torch.as_tensor(predictor(pictures()))
    if predictor is not subject.predictor:
        predictor.close()
    return found


def plain(subject: SweptSubject) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(subject.predictor(pictures()))


@pytest.mark.parametrize(("name", "system"), [("float", CEIL), ("w8a8", CEIL), ("float", ALL)])
def test_the_deployed_file_answers_as_the_simulation(
    name: str, system: System, subjects: dict[str, SweptSubject]
) -> None:
    simulated, deployed = (answer(subjects[f"{name}@{target}"], system) for target in ("torch", "onnxruntime"))
    assert float((simulated - deployed).abs().max()) < 1e-5
    assert float((deployed - plain(subjects[f"{name}@onnxruntime"])).abs().max()) > 1e-3


def test_the_float_simulation_is_the_altered_graph(graph: Graph, subjects: dict[str, SweptSubject]) -> None:
    with torch.no_grad(), torch_threads(1):
        module = copy.deepcopy(altered(graph, CEIL.graph).module)
        lay_out(module, torch.channels_last)  # as the target opens it
        expected = module(pictures())
    assert torch.equal(answer(subjects["float@torch"], CEIL), expected)


@pytest.mark.parametrize("target", ["torch", "onnxruntime"])
def test_integers_of_the_float_variant_are_those_of_the_run(target: str, subjects: dict[str, SweptSubject]) -> None:
    found, integers = answer(subjects[f"float@{target}"], INTEGERS), subjects[f"w8a8@{target}"]
    assert torch.equal(found, plain(integers))
    assert not torch.equal(found, plain(subjects[f"float@{target}"]))
    with pytest.raises(NoNoise, match="w8a8 runs in integers already"):
        answer(integers, INTEGERS)


def test_what_is_so_already_does_not_keep_the_rest_from_being_altered(subjects: dict[str, SweptSubject]) -> None:
    assert torch.equal(answer(subjects["w8a8@torch"], ALL), answer(subjects["float@torch"], ALL))


def test_narrow_arithmetic_runs_the_altered_graph(subjects: dict[str, SweptSubject]) -> None:
    both = answer(subjects["float@torch"], replace(CEIL, arithmetic="bf16"))
    alone = answer(subjects["float@torch"], CEIL)
    assert 0 < float((both - alone).abs().max()) < 0.05
    with pytest.raises(NotApplicable, match="onnxruntime has no bf16"):
        answer(subjects["float@onnxruntime"], replace(CEIL, arithmetic="bf16"))


def test_a_system_that_differs_elsewhere_keeps_the_predictor(subjects: dict[str, SweptSubject]) -> None:
    subject = subjects["float@torch"]
    assert subject.alter is not None
    assert subject.alter(System(PIPELINE, boxes="decode")) is subject.predictor


def test_an_altered_file_is_compiled_once(subjects: dict[str, SweptSubject], monkeypatch: pytest.MonkeyPatch) -> None:
    alter = subjects["float@onnxruntime"].alter
    assert isinstance(alter, Altered)
    first = answer(subjects["float@onnxruntime"], CEIL)
    folder = alter.artefact.path.parent / "altered"
    made = sorted(folder.iterdir())
    assert not [path for path in made if path.name.startswith(".")]

    def refuse(*_: Any, **__: Any) -> Artefact:
        raise AssertionError("compiled again")

    monkeypatch.setattr(OnnxRuntime, "compile", refuse)
    assert torch.equal(answer(subjects["float@onnxruntime"], CEIL), first)
    # Another plan, another file: the name of the folder is the hash of what is in it.
    with pytest.raises(AssertionError, match="compiled again"):
        replace(alter, digest="another")(CEIL)
    assert sorted(folder.iterdir()) == made


def test_what_cannot_be_altered_says_why(graph: Graph, built: Built, tmp_path: Path) -> None:
    alone = OpenVariants(float_only(graph, OnnxRuntime(), tmp_path).variants, 1)()
    for subject in alone:
        with pytest.raises(NotApplicable, match="--bits w8a8"):
            answer(subject, INTEGERS)
        with pytest.raises(NotApplicable, match="bilinear or bicubic"):
            answer(subject, System(PIPELINE, graph=("align_corners",)))
        with pytest.raises(NoNoise, match="32x32 to 15x15, 15x15 to 7x7"):
            answer(subject, System(PIPELINE, graph=("floor_mode",)))
    file = built.variants[1].artefact
    (foreign,) = OpenVariants((Variant("deployed", "onnxruntime", replace(file, bits="as-deployed")),), 1)()
    for system in (CEIL, INTEGERS, ALL):
        with pytest.raises(NotApplicable, match="deployed"):
            answer(foreign, system)
    (lost,) = OpenVariants((replace(built.variants[3], planned=None),), 1)()
    with pytest.raises(NotApplicable, match="the recipe of w8a8 was not kept"):
        answer(lost, CEIL)


def test_a_variant_is_named_by_its_plan_too(built: Built, tmp_path: Path) -> None:
    variant = built.variants[0]
    assert variant.planned is not None
    before = variant.digest
    for ending in (".json", ".safetensors"):
        source = variant.planned.recipe.with_name(variant.planned.recipe.name + ending)
        (tmp_path / f"recipe{ending}").write_bytes(source.read_bytes())
    moved = replace(variant, planned=replace(variant.planned, recipe=tmp_path / "recipe"))
    assert moved.digest == before
    (tmp_path / "recipe.json").write_text("{}")
    assert moved.digest != before


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("ceil_mode:ceil", ["done", "done"]),
        ("ceil_mode:floor", ["no-noise", "no-noise"]),
        ("align_corners:flipped", ["not-applicable", "not-applicable"]),
        ("precision:int8", ["done", "no-noise"]),
        ("box_offset:decode", ["not-applicable", "not-applicable"]),
        # One part that changes nothing does not silence the other.
        ("resize:opencv-nearest+ceil_mode:floor", ["done", "done"]),
    ],
)
def test_cells_say_what_became_of_them(text: str, statuses: list[str], subjects: dict[str, SweptSubject]) -> None:
    """The pipeline enlarges and crops, so that its resize is a noise too."""
    spec, maker = parse_noise(text)
    resize = PIPELINE.resize
    assert resize is not None
    pipeline = replace(PIPELINE, resize=replace(resize, short_side_px=40, skip_up_to=None))
    data = limit(digits_split()[1], 12, seed=0)  # pyright: ignore[reportArgumentType]
    plan = Plan("joined", data, pipeline, Classification(LabelMap()), ((spec, maker),), batch=8, threads=1)
    of_torch = [subjects["float@torch"], subjects["w8a8@torch"]]
    with Pictures(plan) as loaded:
        found = answers(Group(spec, maker()), of_torch, plan, loaded)
    assert [outcome.status for outcome in found] == statuses, [outcome.reason for outcome in found]
