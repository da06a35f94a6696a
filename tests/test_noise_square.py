"""The Square attack in three norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from attacked import Judge, Linear, convnet, draws, pictures, trained_digits, worst
from torch import Tensor, nn

from seatrial.noise.margin import margin
from seatrial.noise.square import Square


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


def test_square_never_needs_gradients_and_leaves_the_fallen_alone(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    module, inputs, labels = trained
    wrong = labels.clone()
    wrong[:5] = (wrong[:5] + 1) % 10
    judge = Judge(module, frozenset({"logits", "labels"}))
    result = Square(epsilon=0.1, queries=40).perturb(judge, inputs, wrong, rng=draws(len(inputs)))
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
