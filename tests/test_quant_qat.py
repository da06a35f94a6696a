"""Quantization-aware training: laws of all methods, from a prepared network to graph and recipe, and resuming."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise, source
from seatrial.core.recipe import Affine, FloatType, Recipe
from seatrial.core.sites import Site, attribute, operators
from seatrial.errors import BadInput
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.dorefa import DoReFa
from seatrial.quant.lsq import LSQ
from seatrial.quant.pact import PACT
from seatrial.quant.placement import place
from seatrial.quant.qat import WEIGHTED_ONLY, LearnedRound, Prepared, QatMethod, placed, prepare
from seatrial.train.loop import Training
from seatrial.train.trainable import trainable, trained

METHODS: dict[str, QatMethod] = {"lsq": LSQ(), "pact": PACT(), "dorefa": DoReFa()}
UNSIGNED = PlacementRules("unsigned", "unsigned", operator_outputs=True)


class Network(nn.Module):
    """Convolutions with batch norms, one behind a sum, two joined by a concatenation, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.join, self.late = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = (self.left_norm(self.left(x)) + x).relu()
        z = self.depthwise(y).relu()
        joined = self.late(self.join(torch.cat([y, z], 1)).relu())
        return self.head(joined.mean((2, 3)))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Network()
        with torch.no_grad():
            model.norm.weight[1] = -0.7  # a batch norm that turns the sign
            model.left_norm.weight[3] = -1.2
            model.left_norm.weight[4] = 0.0
            model(torch.rand(32, 3, 8, 8))
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on so small networks wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(network(), torch.rand(2, 3, 8, 8), normalization=Normalization((0.4,) * 3, (0.3,) * 3))


def data(count: int = 48) -> tuple[Tensor, Tensor]:
    """Return pictures of four classes: one color is brighter, or none."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (count,), generator=draw)
    bright = F.one_hot(labels, 4)[:, :3, None, None] * 0.5
    return torch.rand(count, 3, 8, 8, generator=draw) * 0.5 + bright, labels


def ready(graph: Graph, method: QatMethod, bits: int, rules: PlacementRules = WEIGHTED_ONLY, **options) -> Prepared:
    precision = placed(graph, rules, Bits(bits, bits), **options)
    return prepare(method, graph, [data()[0][:24], data()[0][24:]], precision)


def fitted(prepared: Prepared, method: QatMethod, epochs: int = 2, rate: float = 0.02, **options) -> Prepared:
    training = Training(epochs, 16, rate, 1e-4, optimizer="sgd", decayed="matrices")

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y) + method.penalty(module)

    training.fit(prepared.module, *data(), loss, seed=0, **options)
    return prepared


@pytest.mark.parametrize("rules", [WEIGHTED_ONLY, UNSIGNED], ids=lambda rules: rules.name)
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", METHODS)
def test_graph_and_recipe_compute_what_was_trained(
    name: str, bits: int, rules: PlacementRules, graph: Graph, tmp_path: Path
) -> None:
    method, pictures = METHODS[name], data()[0]
    prepared = fitted(ready(graph, method, bits, rules), method, epochs=1)
    float_graph, recipe = prepared.converted()
    recipe.save(tmp_path / "recipe")
    realised = realise(float_graph, Recipe.load(tmp_path / "recipe"))
    with torch.no_grad():
        wanted, found = prepared.module(pictures), realised.module(pictures)
    off = (found - wanted).abs().amax(1) / wanted.abs().max()
    # Folding batch norms moves values by round-off, and here and there one over the edge between two codes.
    assert float(off.median()) < 1e-5
    assert float((off > 1e-4).float().mean()) < 0.1
    assert {edit.site for edit in recipe.rounds} == set(prepared.rounds)


@pytest.mark.parametrize("name", METHODS)
def test_without_batch_norms_graph_and_recipe_are_exact(name: str) -> None:
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    graph, method = capture(plain, torch.rand(2, 3, 8, 8)), METHODS[name]
    prepared = fitted(ready(graph, method, 3), method)
    with torch.no_grad():
        wanted, found = prepared.module(data()[0]), realise(*prepared.converted()).module(data()[0])
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 6])
@pytest.mark.parametrize("name", METHODS)
def test_values_lie_on_at_most_two_to_the_bits_levels(name: str, bits: int, graph: Graph) -> None:
    prepared = fitted(ready(graph, METHODS[name], bits, ends="same"), METHODS[name], epochs=1)
    named = operators(trained(graph, prepared.module))
    for site, target in prepared.rounds.items():
        assert isinstance(target, str)
        learned = prepared.module.get_submodule(target)
        assert isinstance(learned, LearnedRound)
        grid = learned.grid()
        assert grid.bits == bits
        x = 3 * torch.randn(8, 500, generator=torch.Generator().manual_seed(2))
        if site.port == "weight":
            x = attribute(prepared.module, str(source(named[site.operator], "weight").target))
        with torch.no_grad():
            values = learned(x)
        for i, row in enumerate([values] if grid.axis is None else values):
            assert len(row.unique()) <= 2**bits
            scale, zero = (part if grid.axis is None else part[i] for part in (grid.scale, grid.zero_point))
            codes = row / scale + zero
            assert torch.allclose(codes, codes.round(), atol=1e-3)
            assert grid.codes[0] - 1e-3 <= float(codes.min()) <= float(codes.max()) <= grid.codes[1] + 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_training_learns_and_leaves_the_graph_alone(name: str, graph: Graph) -> None:
    method = METHODS[name]
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    code = graph.module.code
    prepared = ready(graph, method, 4)
    pictures, labels = data()
    first = F.cross_entropy(prepared.module(pictures), labels).detach()
    fitted(prepared, method, epochs=10, rate=0.2)
    last = F.cross_entropy(prepared.module(pictures), labels).detach()
    assert float(last) < 0.9 * float(first)
    assert graph.module.code == code
    assert all(torch.equal(value, before[key]) for key, value in graph.module.state_dict().items())
    assert not any(value.requires_grad for value in graph.module.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_training_goes_on_bit_for_bit(name: str, graph: Graph, tmp_path: Path) -> None:
    method = METHODS[name]
    whole = fitted(ready(graph, method, 4), method, epochs=2)

    def stop(epoch: int, _: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    file = tmp_path / "training.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fitted(ready(graph, method, 4), method, epochs=2, checkpoint=file, progress=stop)
    seen: list[int] = []
    again = fitted(
        ready(graph, method, 4), method, epochs=2, checkpoint=file, progress=lambda epoch, _: seen.append(epoch)
    )
    assert seen == [2]
    one, other = whole.module.state_dict(), again.module.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(BadInput, match="another training"):
        fitted(ready(graph, method, 4), method, epochs=3, checkpoint=file)


def test_equal_questions_give_equal_networks(graph: Graph) -> None:
    first, second = (fitted(ready(graph, LSQ(), 2), LSQ(), epochs=1).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_rounds_stand_where_a_recipe_puts_them(graph: Graph) -> None:
    """With the grids of a recipe, a prepared network is the realised graph: the rounds stand on the same edges."""
    for rules in (WEIGHTED_ONLY, UNSIGNED):
        prepared = ready(graph, LSQ(), 8, rules)
        folded, recipe = prepared.converted()
        assert set(prepared.rounds) == set(place(fold_batch_norm(graph), rules, Bits(8, 8)))
        with torch.no_grad():
            plain, rounded = folded.module(data()[0]), realise(folded, recipe).module(data()[0])
            learned = prepared.module(data()[0])
        assert not torch.allclose(plain, learned, atol=1e-4)
        assert torch.allclose(rounded, learned, atol=1e-3)


def test_sites_of_one_tie_share_their_round(graph: Graph) -> None:
    prepared = ready(graph, PACT(), 4)
    tied = [name for site, name in prepared.rounds.items() if placed(graph, WEIGHTED_ONLY, Bits(4, 4))[site].tie]
    assert len(tied) >= 2
    assert len(set(tied)) == 1


def test_the_ends(graph: Graph) -> None:
    def bits(**options) -> dict[Site, int]:
        found = placed(graph, WEIGHTED_ONLY, Bits(4, 4), **options)
        return {site: wanted.bits for site, wanted in found.items() if site.port == "weight"}

    inner = {site: 4 for site in bits() if site.path not in ("stem", "head")}
    first, last = (Site.parse("stem/conv2d#0:weight"), Site.parse("head/linear#0:weight"))
    assert bits() == inner | {first: 8, last: 8}
    assert bits(ends="same") == inner | {first: 4, last: 4}
    assert bits(ends="float") == inner
    with pytest.raises(BadInput, match="ends"):
        bits(ends="none")


def test_operators_kept_in_a_float_type_are_kept_so(graph: Graph) -> None:
    precision = placed(graph, WEIGHTED_ONLY, Bits(8, 8), keep=["left=bf16"])
    prepared = prepare(LSQ(), graph, [data()[0]], precision)
    assert FloatType("bf16") in prepared.rounds.values()
    with torch.no_grad():
        off = prepared.module(data()[0]) - realise(*prepared.converted()).module(data()[0])
    assert float(off.abs().max()) < 0.02


def test_what_cannot_be_prepared_is_refused(graph: Graph) -> None:
    precision = placed(graph, WEIGHTED_ONLY, Bits(4, 4))
    with pytest.raises(BadInput, match="calibration"):
        prepare(LSQ(), graph, [], precision)
    with pytest.raises(BadInput, match="operator of this graph"):
        prepare(LSQ(), graph, [data()[0]], {Site.parse("nowhere/conv2d#0:weight"): Precision(4, True, True)})
    with pytest.raises(BadInput, match="symmetric"):
        prepare(LSQ(), graph, [data()[0]], {Site.parse("stem/conv2d#0:weight"): Precision(4, True, False)})


# A captured graph that trains


def test_a_trainable_graph_trains_as_the_module_does() -> None:
    eager = network(5)
    graph = capture(eager, torch.rand(2, 3, 8, 8))
    module = trainable(graph)
    pictures, labels = data(32)
    twin = copy.deepcopy(eager)
    for part in (module, twin):
        part.train()
        optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(part(pictures), labels).backward()
            optimizer.step()
        part.eval()
    with torch.no_grad():
        assert torch.allclose(module(pictures), twin(pictures), atol=1e-6)
        assert torch.allclose(trained(graph, module).module(pictures), twin(pictures), atol=1e-6)
    for name, value in twin.named_buffers():
        if "running" in name:
            assert torch.allclose(module.get_buffer(f"inner.{name}"), value, atol=1e-6)


def test_frozen_norms_keep_their_statistics(graph: Graph) -> None:
    module = trainable(graph, norms="frozen").train()
    before = {key: value.clone() for key, value in module.named_buffers()}
    pictures = data()[0]
    assert torch.allclose(module(pictures), graph.module(pictures), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in module.named_buffers())
    live = trainable(graph, norms="live").train()
    live(pictures)
    assert any(not torch.equal(value, before[key]) for key, value in live.named_buffers())


def test_grids_are_affine_and_hold_zero(graph: Graph) -> None:
    for method in (LSQ(), PACT()):
        folded, recipe = ready(graph, method, 4, UNSIGNED).converted()
        assert set(operators(folded)) == set(operators(fold_batch_norm(graph)))
        for edit in recipe.rounds:
            assert isinstance(edit.grid, Affine)
            low, high = edit.grid.codes
            assert bool(((edit.grid.zero_point >= low) & (edit.grid.zero_point <= high)).all())
            assert np.isfinite(edit.grid.scale.numpy()).all()
