"""The balls of three norms: projections are exact, independent of the batch, and what other solvers find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from seatrial.core.chance import generator
from seatrial.errors import BadInput
from seatrial.noise.ascent import random_start, sparse_ascent, steepest
from seatrial.noise.ball import NORMS, ball_around, budget

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def centers(seed: int, count: int = 5, size: tuple[int, int] = (6, 7)) -> Tensor:
    """Return pictures of which some pixels sit on 0 and on 1."""
    values = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))
    return values.mul(1.4).sub(0.2).clamp(0, 1)


def away(seed: int, center: Tensor, spread: float, share: float) -> Tensor:
    """Return points `spread` away from `center` in a `share` of the entries."""
    source = torch.Generator().manual_seed(seed + 1)
    moved = torch.rand(center.shape, generator=source) < share
    return center + spread * moved * torch.randn(center.shape, generator=source)


def distance(norm: str, point: Tensor, center: Tensor) -> Tensor:
    offset = (point.double() - center.double()).flatten(1)
    return torch.linalg.vector_norm(offset, ord=ORDER[norm], dim=1)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.floats(1e-3, 1.0),
    spread=st.sampled_from([1e-3, 0.05, 0.5, 20.0]),
    share=st.sampled_from([0.03, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_projection_is_in_the_ball_and_the_box(
    norm: str, epsilon: float, spread: float, share: float, seed: int
) -> None:
    epsilon *= {"linf": 1, "l2": 5, "l1": 40}[norm]
    epsilon = min(epsilon, 1.0) if norm == "linf" else epsilon
    center = centers(seed)
    point = away(seed, center, spread, share)
    kept = center.clone(), point.clone()
    ball = ball_around(norm, center, epsilon)
    found = ball.project(point)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert (distance(norm, found, center) <= epsilon).all()
    assert torch.equal(center, kept[0])
    assert torch.equal(point, kept[1])
    # What is inside stays, bit for bit; the rounding of L-inf's walls leaves 1e-7 of the ball out.
    assert torch.equal(ball.project(found), found)
    assert torch.equal(ball.project(center), center)
    near = (distance(norm, point, center) <= epsilon - 1e-7) & ((point >= 0) & (point <= 1)).flatten(1).all(1)
    assert torch.equal(found[near], point[near])
    # A sample's result does not depend on the others.
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(ball.select(order).project(point[order]), found[order])
    for i in range(len(point)):
        assert torch.equal(ball.select(torch.tensor([i])).project(point[i : i + 1])[0], found[i])


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_does_not_give_the_budget_away(norm: str) -> None:
    center = torch.full((4, 3, 8, 8), 0.5)
    epsilon = {"linf": 0.1, "l2": 0.8, "l1": 10.0}[norm]
    found = ball_around(norm, center, epsilon).project(away(1, center, 3.0, 1.0))
    assert (distance(norm, found, center) >= epsilon * (1 - 1e-5)).all()


@settings(max_examples=40, deadline=None)
@given(epsilon=st.floats(0.01, 2.0), spread=st.sampled_from([0.05, 0.3, 2.0]), seed=st.integers(0, 1000))
def test_an_l1_projection_is_the_nearest_point(epsilon: float, spread: float, seed: int) -> None:
    """The nearest point of a convex set is the one from which no other lies in the direction of what was projected."""
    center = centers(seed, 3, (2, 3))
    point = away(seed, center, spread, 1.0)
    found = ball_around("l1", center, epsilon).project(point).double()
    rest = (point.double() - found).flatten(1)
    # Every extreme point moves one entry as far as it goes, or several to the wall; convex mixtures add nothing.
    room = torch.stack([center.double().neg(), 1 - center.double()]).flatten(2)
    for row in range(3):
        base, toward = center[row].double().flatten(), rest[row]
        # The best of the linear function: fill up the entries with the largest weight, first to last.
        reach = torch.where(toward > 0, room[1, row], room[0, row])
        left, best = epsilon, base.clone()
        for entry in toward.abs().argsort(descending=True).tolist():
            moved = min(left, abs(float(reach[entry])))
            best[entry] += math.copysign(moved, float(reach[entry]))
            left -= moved
        assert float(toward @ (best - found[row].flatten())) <= 1e-6 * (1 + float(toward.norm()))


@pytest.mark.parametrize("seed", range(6))
def test_an_l1_projection_is_what_a_general_solver_finds(seed: int) -> None:
    epsilon = [0.2, 0.5, 1.0][seed % 3]
    center, n = centers(seed, 1, (2, 2)), 12
    point = away(seed, center, [0.1, 0.6][seed % 2], 1.0)
    found = ball_around("l1", center, epsilon).project(point)
    base, wanted = center.double().flatten().numpy(), (point - center).double().flatten().numpy()

    # Split in what is added and what is taken away, so that everything is smooth.
    def cost(split: np.ndarray) -> tuple[float, np.ndarray]:
        off = split[:n] - split[n:] - wanted
        return float(off @ off), 2 * np.concatenate([off, -off])

    limit = {"type": "ineq", "fun": lambda split: epsilon - split.sum(), "jac": lambda split: -np.ones(2 * n)}
    bounds = [(0, 1 - value) for value in base] + [(0, value) for value in base]
    solved = minimize(
        cost, np.zeros(2 * n), jac=True, bounds=bounds, constraints=[limit], options={"maxiter": 500, "ftol": 1e-12}
    )
    assert solved.success
    oracle = base + solved.x[:n] - solved.x[n:]
    assert np.abs(found.double().flatten().numpy() - oracle).max() < 1e-5
    mine = found.double().flatten().numpy() - base - wanted
    assert float(mine @ mine) <= solved.fun + 1e-6  # rounded to float32


def test_projections_worked_by_hand() -> None:
    """L2: (3, 4, 0) / 10 has length 0.5. L1: 0.1 less each; with a wall at 0.1, 0.05 less each."""
    middle = torch.full((1, 3, 1, 1), 0.5)
    offset = torch.tensor([0.3, 0.4, 0.0]).view(1, 3, 1, 1)
    found = ball_around("l2", middle, 0.25).project(middle + offset) - middle
    assert found.flatten().tolist() == pytest.approx([0.15, 0.2, 0.0], abs=1e-6)
    offset = torch.tensor([0.4, -0.3, 0.1]).view(1, 3, 1, 1)
    found = ball_around("l1", middle, 0.5).project(middle + offset) - middle
    assert found.flatten().tolist() == pytest.approx([0.3, -0.2, 0.0], abs=1e-6)
    walled = torch.tensor([0.9, 0.5, 0.5]).view(1, 3, 1, 1)
    found = ball_around("l1", walled, 0.4).project(walled + offset) - walled
    assert found.flatten().tolist() == pytest.approx([0.1, -0.25, 0.05], abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_empty_batches_and_what_is_refused(norm: str) -> None:
    empty = torch.zeros(0, 3, 4, 4)
    assert ball_around(norm, empty, 0.5).project(empty).shape == (0, 3, 4, 4)
    for center in (torch.full((1, 3, 2, 2), 1.5), torch.zeros(1, 3, 2, 2, dtype=torch.float64), torch.zeros(3, 2, 2)):
        with pytest.raises(BadInput):
            ball_around(norm, center, 0.5)
    with pytest.raises(BadInput, match="l3"):
        ball_around("l3", torch.zeros(1, 3, 2, 2), 0.5)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_uniform_in_the_ball(norm: str) -> None:
    """Of a uniform point, the half-size ball holds 1 in 2^n, and each entry has mean 0."""
    count, epsilon = 4000, 0.4
    center = torch.full((count, 3, 1, 1), 0.5)
    rng = [generator(0, norm, i) for i in range(count)]
    found = random_start(center, ball_around(norm, center, epsilon), norm, epsilon, rng)
    size = distance(norm, found, center)
    assert (size <= epsilon).all()
    share = float((size <= epsilon / 2).double().mean())
    assert abs(share - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / count)
    offset = (found - center).flatten(1).double()
    assert (offset.mean(0).abs() < 4 * offset.std(0) / math.sqrt(count)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_steepest_direction_climbs_as_the_dual_norm_says(norm: str) -> None:
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[3] = 0
    direction = steepest(gradient, norm)
    climb = (gradient * direction).flatten(1).sum(1)[:3]
    assert torch.equal(direction[3], torch.zeros(3, 5, 5))
    sizes = torch.linalg.vector_norm(direction.flatten(1), ord=ORDER[norm], dim=1)[:3]
    assert torch.allclose(sizes, torch.ones(3))
    if norm != "l1":  # the scaled gradient is not the steepest in L1
        dual = torch.linalg.vector_norm(gradient.flatten(1), ord={"linf": 1, "l2": 2}[norm], dim=1)[:3]
        assert torch.allclose(climb, dual)


def test_budgets_stated_for_224_pixels_keep_the_mean_change() -> None:
    """Means a pixel of 0.17, 0.68 and 2.71 of 255 at L1 100, 400, 1600; root mean squares 0.33, 1.31, 5.26 at L2."""
    for epsilon, mean in (("100@224", 0.17), ("400@224", 0.68), ("1600@224", 2.71)):
        assert budget("l1", epsilon, (3, 32, 32)) / 3072 * 255 == pytest.approx(mean, abs=0.005)
    for epsilon, mean in (("0.5@224", 0.33), ("2@224", 1.31), ("8@224", 5.26)):
        assert budget("l2", epsilon, (3, 32, 32)) / math.sqrt(3072) * 255 == pytest.approx(mean, abs=0.005)
    assert budget("linf", "2/255@224", (3, 32, 32)) == 2 / 255
    assert budget("l1", "400@224", (3, 224, 224)) == 400
    with pytest.raises(BadInput, match="diameter"):
        budget("l2", 8, (3, 4, 4))
    with pytest.raises(BadInput, match="8/255"):
        budget("linf", 8)


def test_the_sparse_direction_takes_the_largest_entries_that_no_wall_holds() -> None:
    gradient = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0, 0.0]).view(1, 3, 2, 1)
    point = torch.tensor([1.0, 0.5, 0.5, 0.0, 0.5, 0.5]).view(1, 3, 2, 1)
    assert sparse_ascent(gradient, point, 0.5).flatten().tolist() == pytest.approx([0, -1 / 3, 1 / 3, 0, 1 / 3, 0])
    assert sparse_ascent(gradient, point, 0.01).flatten().tolist() == [0, -1, 0, 0, 0, 0]
    assert sparse_ascent(gradient, point, 1.0).flatten().tolist() == pytest.approx([0, -1 / 3, 1 / 3, 0, 1 / 3, 0])
    assert not sparse_ascent(torch.zeros(2, 3, 2, 1), torch.zeros(2, 3, 2, 1), 0.5).any()
