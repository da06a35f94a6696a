"""HopSkipJump: how near it comes to boundaries that are known, what it costs, and what it does without a way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attacked import Judge, Linear, draws, pictures, trained_digits
from torch import Tensor, nn

from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.errors import BadInput, NotApplicable
from seatrial.noise.ball import ball_around
from seatrial.noise.hopskipjump import HopSkipJump

LABELS: frozenset[Gift] = frozenset({"labels"})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads, by far so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Named(Predictor):
    """A predictor that gives the number of the class and nothing else, as an endpoint may."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def gives(self) -> frozenset[Gift]:
        return LABELS

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return self._module(inputs).argmax(1)


class Plane(nn.Module):
    """Class 0 above a plane through the middle of the box, whose distance is known in every norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2)))

    def forward(self, inputs: Tensor) -> Tensor:
        score = ((inputs - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def above(module: Plane, distance: float, norm: str, count: int = 6) -> Tensor:
    """Return pictures of class 0 at `distance` from the plane, far enough from the walls of the box."""
    inputs = 0.5 + 0.1 * (torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5)
    weight = module.weight.detach()
    across = weight.sign() if norm == "linf" else weight / weight.norm()
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    score = ((inputs - 0.5) * weight).flatten(1).sum(1)
    return inputs + (distance - score / dual)[:, None, None, None] * across


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_point_of_a_plane_is_nearly_found_and_never_undercut(norm: str) -> None:
    module = Plane()
    distance = {"l2": 0.3, "linf": 0.05}[norm]
    inputs, labels = above(module, distance, norm), torch.zeros(6, dtype=torch.int64)
    for share, fooled in ((1.15, True), (0.95, False)):
        epsilon = share * distance
        judge = Judge(module, LABELS)
        result = HopSkipJump(epsilon=epsilon, norm=norm, queries=3000).perturb(judge, inputs, labels, rng=draws(6))
        assert ((module(result.inputs).argmax(1) == 1) == fooled).all()
        assert result.queries.sum() == judge.rows
        assert (result.queries <= 3000).all()
        order = {"l2": 2, "linf": torch.inf}[norm]
        moved = torch.linalg.vector_norm((result.inputs.double() - inputs.double()).flatten(1), ord=order, dim=1)
        assert (moved <= epsilon).all()
        if fooled:
            assert (result.queries < 3000).all()
        else:
            assert (result.queries > 2950).all()
            assert (moved > epsilon * (1 - 1e-5)).all()  # the closest point there was, projected


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_what_falls_on_a_network_is_misclassified_and_in_the_ball(norm: str) -> None:
    module, inputs, labels = trained_digits()
    inputs, labels = inputs[:20], labels[:20]
    epsilon = {"l2": 1.8, "linf": 0.22}[norm]
    attack = HopSkipJump(epsilon=epsilon, norm=norm, queries=600)
    result = attack.perturb(Judge(module, LABELS), inputs, labels, rng=draws(20))
    with torch.no_grad():
        clean, fallen = module(inputs).argmax(1) != labels, module(result.inputs).argmax(1) != labels
    assert torch.equal(result.inputs[clean], inputs[clean])
    assert (result.queries[clean.numpy()] == 1).all()
    early = torch.tensor(result.queries < 550)
    assert fallen[early].all()
    assert fallen.float().mean() > 0.5
    assert torch.equal(ball_around(norm, inputs, epsilon).project(result.inputs), result.inputs)
    assert np.isnan(result.zero_gradient).all()
    # Labels alone, or the scores that give them: the same walk.
    named = attack.perturb(Named(module), inputs, labels, rng=draws(20))
    assert torch.equal(named.inputs, result.inputs)
    assert np.array_equal(named.queries, result.queries)


def test_a_larger_budget_of_queries_comes_closer() -> None:
    module = Plane()
    inputs, labels = above(module, 0.2, "l2", 12), torch.zeros(12, dtype=torch.int64)
    fallen = []
    for queries in (60, 300, 2000):
        found = HopSkipJump(epsilon=0.24, queries=queries).perturb(Judge(module), inputs, labels, rng=draws(12)).inputs
        fallen.append(int((module(found).argmax(1) == 1).sum()))
    assert fallen[0] < fallen[1] < fallen[2] == 12


def test_noise_that_is_in_the_budget_ends_the_search_at_once() -> None:
    weight = torch.ones(3, 4, 4)
    inputs = torch.full((2, 3, 4, 4), 0.52)

    class Shifted(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs - 0.5)

    judge = Judge(Shifted(weight), LABELS)
    attack = HopSkipJump(epsilon=1.0, norm="linf")
    result = attack.perturb(judge, inputs, torch.zeros(2, dtype=torch.int64), rng=draws(2))
    assert (result.queries < 40).all()
    assert (judge(result.inputs).argmax(1) == 1).all()


def test_without_a_start_the_picture_comes_back() -> None:
    """A network that knows one class only: 1 clean query, 100 of noise, 8 of flat colors, 1 of the negative."""

    class Always(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.eye(4)[:1].expand(len(inputs), 4)

    judge, inputs = Judge(Always(), LABELS), pictures(3)
    result = HopSkipJump(epsilon=0.5).perturb(judge, inputs, torch.zeros(3, dtype=torch.int64), rng=draws(3))
    assert torch.equal(result.inputs, inputs)
    assert result.queries.tolist() == [110, 110, 110]
    result = HopSkipJump(epsilon=0.5, queries=30).perturb(
        judge, inputs, torch.zeros(3, dtype=torch.int64), rng=draws(3)
    )
    assert result.queries.tolist() == [30, 30, 30]
    empty = HopSkipJump(epsilon=0.5).perturb(judge, inputs[:0], torch.zeros(0, dtype=torch.int64), rng=[])
    assert empty.inputs.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    "options", [{"norm": "l1"}, {"queries": 1}, {"draws": 3}, {"draws": 50, "most_draws": 20}, {"gamma": 0.0}], ids=str
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        HopSkipJump(epsilon=0.5, **options)


def test_labels_are_needed() -> None:
    silent, labels = Judge(Plane(), frozenset()), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(NotApplicable, match="labels"):
        HopSkipJump(epsilon=0.5).perturb(silent, pictures(2, 4, 4), labels, rng=draws(2))
