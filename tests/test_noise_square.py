"""The Square attack in three norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from attacked import Judge, Linear, convnet, draws, pictures, trained_digits, worst
from torch import Tensor, nn

from seatrial.noise.ball import ball_around
from seatrial.noise.margin import margin
from seatrial.noise.square import Square
from seatrial.noise.square_pyramid import pyramids


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads, by far so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    return trained_digits()


def test_square_finds_the_worst_picture_where_each_channel_has_one_sign() -> None:
    weight = torch.tensor([1.0, -2.0, 0.5])[:, None, None] * torch.linspace(0.5, 1.5, 25).view(5, 5)
    inputs = pictures(4, 5, 5)
    module = Linear(weight)
    inputs[0] = (weight > 0).float().mul(0.8).add(0.1)  # far from the border, so it stands to the end
    result = Square(epsilon=0.01, queries=3000).perturb(
        Judge(module, frozenset({"logits"})), inputs, torch.zeros(4, dtype=torch.int64), rng=draws(4)
    )
    standing = torch.tensor(result.queries == 3000)
    assert standing[0]
    assert (result.inputs - worst(inputs, weight, 0.01)).abs()[standing].max() < 1e-6


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.8), ("l1", 4.0)])
def test_square_never_needs_gradients_and_leaves_the_fallen_alone(
    norm: str, epsilon: float, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    module, inputs, labels = trained
    wrong = labels.clone()
    wrong[:5] = (wrong[:5] + 1) % 10
    judge = Judge(module, frozenset({"logits", "labels"}))
    result = Square(epsilon=epsilon, norm=norm, queries=40).perturb(judge, inputs, wrong, rng=draws(len(inputs)))
    with torch.no_grad():
        clean = margin(module(inputs), wrong) < 0
        fallen = margin(module(result.inputs), wrong) < 0
    assert clean[:5].sum() >= 4
    assert torch.equal(result.inputs[clean], inputs[clean])
    assert (result.queries[clean.numpy()] == 1).all()
    assert (result.queries[~clean.numpy()] >= 2).all()
    assert (result.queries <= 40).all()
    assert (result.queries[~fallen.numpy()] == 40).all()
    assert np.isnan(result.zero_gradient).all()
    assert result.queries.sum() == judge.rows


def test_square_draws_its_own_square_for_each_sample_and_never_an_idle_one() -> None:
    judge = Judge(Linear(torch.full((3, 12, 9), 1024.0)))  # far from falling, so the batch stays whole
    inputs = torch.full((3, 3, 12, 9), 0.5)
    # Powers of two, so that sums are exact and the replay below accepts what the search accepts.
    Square(epsilon=1 / 64, queries=60).perturb(judge, inputs, torch.zeros(3, dtype=torch.int64), rng=draws(3))
    assert torch.equal(judge.asked[0], inputs)
    stripes, *proposals = judge.asked[1:]
    assert len(proposals) == 58
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    best, least = stripes, stripes.sum((1, 2, 3))
    unequal = 0
    for proposal in proposals:
        changed = (proposal != best).any(1)
        assert changed.flatten(1).any(1).all()  # a query is never spent on a picture that is known
        for picture, spot in zip(proposal, changed):
            rows, columns = spot.any(1).nonzero()[:, 0], spot.any(0).nonzero()[:, 0]
            inside = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert torch.equal(inside, inside[:, :1, :1].expand_as(inside))  # one sign a channel in the whole square
        unequal += not torch.equal(changed[0], changed[1])
        score = proposal.sum((1, 2, 3))
        better = score < least
        best = torch.where(better[:, None, None, None], proposal, best)
        least = torch.minimum(score, least)
    assert unequal > 40


def test_square_only_gets_better_and_returns_its_best() -> None:
    module = convnet(3)
    inputs = pictures(6)
    labels = module(inputs).argmax(1)
    previous = margin(module(inputs), labels) + 10
    for queries in (2, 10, 60):
        judge = Judge(module, frozenset({"logits"}))
        rng = draws(6)
        result = Square(epsilon="1/255", queries=queries).perturb(judge, inputs, labels, rng=rng)
        with torch.no_grad():
            now = margin(module(result.inputs), labels)
        # Another budget stretches the schedule, so only the start is common: never worse than the stripes alone.
        assert (now <= previous + 1e-6).all()
        if queries == 2:
            previous = now


def test_square_counts_a_tie_as_standing() -> None:
    class Tie(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.zeros(len(inputs), 4)

    judge = Judge(Tie(), frozenset({"logits"}))
    result = Square(epsilon=0.1, queries=7).perturb(judge, pictures(2), torch.tensor([0, 3]), rng=draws(2))
    assert result.queries.tolist() == [7, 7]


def test_square_rejects_scores_that_are_not_numbers() -> None:
    class Fragile(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            odd = (inputs[:, 0, 0, 0] > 0.5)[:, None]
            return torch.where(odd, torch.nan, torch.tensor([[3.0, 0.0]])).expand(len(inputs), 2)

    judge = Judge(Fragile(), frozenset({"logits"}))
    inputs = torch.full((8, 3, 6, 6), 0.5)
    result = Square(epsilon=0.1, queries=30).perturb(judge, inputs, torch.zeros(8, dtype=torch.int64), rng=draws(8))
    assert (result.queries == 30).all()
    assert result.inputs.isfinite().all()


# L2 and L1: pyramids


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("size", [(16, 16), (11, 19), (3, 4), (2, 2), (1, 1)], ids=str)
def test_every_picture_that_is_asked_is_in_the_ball_and_the_box(norm: str, size: tuple[int, int]) -> None:
    epsilon = 0.3 if norm == "l2" else 1.5
    judge, inputs = Judge(Linear(torch.full((3, *size), 1e4))), pictures(3, *size).clamp(min=0.05)
    ball = ball_around(norm, inputs, epsilon)
    result = Square(epsilon=epsilon, norm=norm, queries=40).perturb(
        judge, inputs, torch.zeros(3, dtype=torch.int64), rng=draws(3)
    )
    assert len(judge.asked) == 40
    for asked in judge.asked:
        assert torch.equal(ball.project(asked), asked)
    assert (result.queries == 40).all()
    # The budget is used but for what the walls of the box take.
    moved = torch.linalg.vector_norm((result.inputs - inputs).flatten(1), ord=2 if norm == "l2" else 1, dim=1)
    assert (moved > 0.5 * min(epsilon, 1)).all() or size == (1, 1)


@pytest.mark.parametrize(("norm", "share"), [("l2", 0.5), ("l1", 0.25)])
def test_square_nears_the_worst_picture_of_a_smooth_linear_model(norm: str, share: float) -> None:
    """The margin can fall by epsilon times the dual norm of the weight; from the middle of the box no wall is near.

    In L1 the optimum is a single pixel, which pyramids of nine pixels and two signs only come near to.
    """
    across = torch.linspace(-2, 2, 12)
    weight = (
        torch.exp(-(across[:, None] - 0.5).square() - across.square()) * torch.tensor([1.0, -0.5, 0.2])[:, None, None]
    )
    inputs, module, epsilon = torch.full((4, 3, 12, 12), 0.5), Linear(weight), 0.3
    best = epsilon * float(weight.norm() if norm == "l2" else weight.abs().max())
    labels = torch.zeros(4, dtype=torch.int64)
    start = Linear(weight)(inputs)[0, 0]

    class Lifted(nn.Module):
        """Far from falling, so that the search goes on to the end."""

        def forward(self, inputs: Tensor) -> Tensor:
            return module(inputs) + torch.tensor([100.0, 0.0])

    gained = []
    for queries in (30, 1000):
        result = Square(epsilon=epsilon, norm=norm, queries=queries).perturb(
            Judge(Lifted()), inputs, labels, rng=draws(4)
        )
        with torch.no_grad():
            gained.append((start - module(result.inputs)[:, 0]) / best)
    assert (gained[1] <= 1 + 1e-5).all()
    assert (gained[1] > share).all()
    assert (gained[1] > gained[0]).all()


def test_pyramids_of_side_three_worked_by_hand() -> None:
    """In L2 the halves have 1 + 1/4 in the middle and 1/4 elsewhere, each of norm 1; in L1 1 + 1/16 and 1/16."""
    for power, far in ((2, 1 / 4), (1, 1 / 16)):
        upper, lower = np.array([[far, 1 + far, far]]), np.array([[far, far, far], [far, 1 + far, far]])
        sizes = [(np.abs(half) ** power).sum() ** (1 / power) for half in (upper, lower)]
        wanted = np.concatenate([upper / sizes[0], -lower / sizes[1]]) / 2 ** (1 / power)
        assert np.allclose(pyramids(3, power), wanted)
    for side in range(1, 12):
        assert (pyramids(side, 2) ** 2).sum() == pytest.approx(1)
        assert np.abs(pyramids(side, 1)).sum() == pytest.approx(1)
