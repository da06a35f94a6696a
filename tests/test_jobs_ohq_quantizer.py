"""A search with another quantizer than the nearest code: its migrations stay, its precisions are those chosen."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from test_jobs_trial import SIZE
from tiny_network import network
from transformers_graphs import SIZES, answer, captured, inputs_of

import seatrial
from seatrial.catalogue import make
from seatrial.cli.main import main
from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Dynamic, Migrate, Recipe, Round
from seatrial.core.sites import operators, signature, site_of
from seatrial.deploy.chip_meter import ChipMeter
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.systolic import Systolic, bits_of
from seatrial.deploy.systolic_meter import SystolicMeter
from seatrial.errors import BadInput
from seatrial.jobs.chip_search import Candidate, ChipSearch, Searched
from seatrial.jobs.quantized import quantizer_of
from seatrial.jobs.search_settings import SearchSettings
from seatrial.jobs.settings import Settings
from seatrial.quant.assignment import Assignments, integer_grids
from seatrial.quant.groups import group_operators
from seatrial.quant.migrating import rounded_places
from seatrial.quant.migration_places import migration_places
from seatrial.quant.placement import place_operators, quantizable
from seatrial.testing.affine_outliers import affine_outliers

OPTIONS = {"limit": 40, "calibration_samples": 16, "threads": 1, "target": "systolic"}


def plain(name: str) -> Graph:
    """A tiny ViT, or a tiny BERT that reads sentences as long as those of the modeled chip."""
    if name == "vit":
        return captured(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=128)
        return capture(hf.BertForSequenceClassification(config).eval(), inputs_of("bert"))


@cache
def outliers(name: str) -> Graph:
    return affine_outliers(plain(name), [inputs_of(name)], rng=generator(0, "outliers"))


def search_with(quantizer: str) -> ChipSearch:
    wishes = SearchSettings(time_budget_s=12.0, quantizer=quantizer)
    return ChipSearch(Systolic(), quantizer_of(Settings(method=quantizer)), wishes, threads=1)


@pytest.fixture(scope="module", params=["vit", "bert"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def searched(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Searched, Candidate]:
    search, folder = search_with("os-plus"), tmp_path_factory.mktemp(name)
    graph, batches = outliers(name), [inputs_of(name)]
    uniform = search.uniform(graph, batches, folder)
    found = search.run(graph, batches, folder, uniform, start_s=time.monotonic())
    return found, search.deliver(graph, batches, 0, found, folder)


def migrations(recipe: Recipe | None) -> dict[str, Migrate]:
    assert recipe is not None
    return {str(edit.producer): edit for edit in recipe.edits if isinstance(edit, Migrate)}


def test_the_choice_is_planned_with_migrations_at_the_chosen_precisions(
    name: str, searched: tuple[Searched, Candidate]
) -> None:
    found, chosen = searched
    setting, mixture = found.finalists[0]
    assert len(set(mixture.choice.values())) > 1
    asked = found.explorations[setting].assignments.precision(mixture.choice)
    assert chosen.recipe is not None
    assert {edit.site: edit.grid.bits for edit in chosen.recipe.rounds} == {s: p.bits for s, p in asked.items()}  # pyright: ignore[reportAttributeAccessIssue]  all are affine
    assert len({edit.grid.bits for edit in chosen.recipe.rounds if isinstance(edit.grid, Affine)}) > 1
    wanted = {str(site_of(place.producer, "output")) for place in rounded_places(outliers(name), asked, gated=True)}
    assert set(migrations(chosen.recipe)) == wanted
    assert wanted


def test_the_delivered_file_computes_its_recipe(name: str, searched: tuple[Searched, Candidate]) -> None:
    _, chosen = searched
    graph, batch = outliers(name), inputs_of(name)
    moved = realise(graph, Recipe(tuple(migrations(chosen.recipe).values()), signature(graph)))
    assert torch.allclose(answer(moved, batch), answer(graph, batch), atol=1e-3)
    assert chosen.recipe is not None
    predictor = Systolic().open(chosen.artefact, threads=1)
    given = {graph.inputs[0].name: batch} if isinstance(batch, torch.Tensor) else batch
    assert torch.equal(predictor(given), answer(realise(graph, chosen.recipe), batch))
    predictor.close()


def test_all_choices_share_the_migrations_of_the_uniform_plan(searched: tuple[Searched, Candidate]) -> None:
    found, chosen = searched
    planned = migrations(found.uniform.planned)
    for exploration in found.explorations.values():
        for one in exploration.found.values():
            assert migrations(one.recipe) == planned  # the very same edits
    again = migrations(chosen.recipe)
    assert any(not torch.equal(again[key].scale, planned[key].scale) for key in again)


def test_every_uniform_network_is_planned_at_its_precision(searched: tuple[Searched, Candidate]) -> None:
    found, _ = searched
    integers = [one for one in found.uniform.candidates if one.recipe is not None]
    assert [one.name for one in integers] == ["w8a8", "w4a4", "w2a2"]
    scales = [torch.cat([edit.scale for edit in migrations(one.recipe).values()]) for one in integers]
    assert not torch.equal(scales[0], scales[1])


def test_what_migrations_add_is_counted_as_work() -> None:
    """BERT's residual branches read the norms: two operators undo each migration there."""
    graph, target = outliers("bert"), Systolic()
    wanted = dict.fromkeys(quantizable(graph, target.placement), Bits(8, 8))
    asked = place_operators(graph, target.placement, wanted)
    recipe = quantizer_of(Settings(method="os-plus")).plan(graph, [inputs_of("bert")], asked, rng=generator(0))
    rounded = realise(graph, recipe)
    with SystolicMeter(target, graph, recipe) as meter:
        (reading,) = meter.time([recipe])
    costs = target.operator_costs(rounded, bits_of(rounded), 1).values()
    assert reading.latency_ms == pytest.approx(sum(cost.latency_ms for cost in costs))
    assert len(operators(rounded)) > len(operators(graph)) + len(recipe.rounds)


def test_measurements_with_and_without_migrations_are_kept_apart(tmp_path: Path) -> None:
    graph = outliers("bert")
    plain = Recipe((), signature(graph))
    moves = tuple(
        Migrate(site_of(place.producer, "output"), tuple(site_of(c, "output") for c in place.consumers),
                torch.zeros(32), torch.full((32,), 2.0))
        for place in migration_places(graph, gated=False)
    )  # fmt: skip
    assert moves
    places = []
    for recipe in (plain, replace(plain, edits=moves)):
        meter = ChipMeter(OnnxRuntime(), graph, recipe, recipe, threads=1)
        meter._exported = lambda: None  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        with meter:
            places.append(meter._place)  # pyright: ignore[reportPrivateUsage]
    assert places[0] != places[1]


@pytest.mark.parametrize("quantizer", ["ptq4vit", "repq-vit"])
def test_grids_that_no_integer_kernel_reads_are_refused_in_one_line(quantizer: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"whose grid at .* is (twin|logarithmic); wanted affine grids") as told:
        search_with(quantizer).uniform(captured("vit"), [inputs_of("vit")], tmp_path)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_plan_with_such_grids_serves_no_choices() -> None:
    graph, rules = captured("vit"), OnnxRuntime().placement
    site = site_of("head/linear#0", "input0")
    dynamic = Recipe((Round(site, Dynamic(8, False)),), signature(graph))
    with pytest.raises(BadInput, match="is dynamic"):
        Assignments(graph, rules, group_operators(graph, rules), dynamic)
    assert integer_grids(Recipe((), signature(graph))).rounds == ()


def test_apq_vit_searches_too(tmp_path: Path) -> None:
    quantizer: Quantizer = make("quantizer", "apq-vit", samples=4, steps=8, rounds=1)
    search = replace(search_with("apq-vit"), quantizer=quantizer)
    graph, batches = captured("vit"), [inputs_of("vit")]
    uniform = search.uniform(graph, batches, tmp_path)
    found = search.run(graph, batches, tmp_path, uniform, start_s=time.monotonic())
    chosen = search.deliver(graph, batches, 0, found, tmp_path)
    setting, mixture = found.finalists[0]
    asked = found.explorations[setting].assignments.precision(mixture.choice)
    assert chosen.recipe is not None
    assert {edit.site: edit.grid.bits for edit in chosen.recipe.rounds} == {s: p.bits for s, p in asked.items()}  # pyright: ignore[reportAttributeAccessIssue]


def test_the_option_reaches_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[str, Quantizer]] = []

    def look(settings: Settings) -> Quantizer:
        seen.append((settings.method, quantizer_of(settings)))
        raise KeyboardInterrupt

    monkeypatch.setattr("seatrial.jobs.ohq.quantizer_of", look)
    with pytest.raises(KeyboardInterrupt):
        seatrial.quantize(network(), method="ohq", quantizer="os-plus", overrides=SIZE, out=tmp_path, **OPTIONS)
    assert [(name, type(one).__name__) for name, one in seen] == [("os-plus", "OSPlus")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantizer": "os-pluss"}, "did you mean 'os-plus'"),
        ({"settings": Settings(method="gptq")}, "pass quantizer='gptq'"),
        ({"activations_per": "token"}, "--activations-per token with --method ohq"),
        ({"weights_per": "tensor"}, "--weights-per tensor with --method ohq"),
    ],
)
def test_what_a_search_cannot_do_is_said(options: dict, said: str, tmp_path: Path) -> None:
    given = {key: value for key, value in OPTIONS.items() if "settings" not in options}
    with pytest.raises(BadInput, match=said):
        seatrial.quantize(network(), method="ohq", overrides=SIZE, out=tmp_path, **given, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "ohq", "--quantizer", "os-pluss"], "did you mean 'os-plus'"),
        (["--quantizer", "os-plus"], "--method ohq"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["seatrial", "quantize", "digits-cnn", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
