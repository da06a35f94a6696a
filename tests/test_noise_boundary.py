"""FAB's geometry: the nearest point of a plane in the box is what general solvers find; a linear network is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attacked import Judge, Linear, draws, pictures
from scipy.optimize import linprog, minimize
from torch import Tensor

from seatrial.core.noise import Attack
from seatrial.noise.apgd_ce import ApgdCe
from seatrial.noise.ball import NORMS
from seatrial.noise.fab import Fab
from seatrial.noise.fab_t import FabT
from seatrial.noise.hyperplane import nearest_on_plane

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def planes(seed: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return points with walls nearby, slopes of which some are 0, and shifts from small to nearly all of the room."""
    source = torch.Generator().manual_seed(seed)
    points = torch.rand(5, 3, 2, 3, generator=source).mul(1.4).sub(0.2).clamp(0, 1)
    normals = torch.randn(points.shape, generator=source) * (torch.rand(points.shape, generator=source) < 0.8)
    room = torch.where(normals > 0, 1 - points, points)
    shifts = (
        torch.tensor([0.01, 0.2, 0.5, 0.8, 0.95])[:, None, None, None]
        * (room * normals.abs()).sum((1, 2, 3))[:, None, None, None]
    )
    return points, normals * scale, shifts * scale


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e6])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_is_what_a_general_solver_finds(norm: str, seed: int, scale: float) -> None:
    points, normals, shifts = planes(seed, scale)
    changes = nearest_on_plane(points, normals, shifts, norm)
    for point, normal, shift, change in zip(points, normals, shifts, changes, strict=True):
        x, w = (value.flatten().double().numpy() for value in (point, normal / scale))
        wanted, found = float(shift) / scale, change.flatten().double().numpy()
        assert w @ found == pytest.approx(wanted, rel=1e-5)
        assert ((x + found > -1e-6) & (x + found < 1 + 1e-6)).all()
        assert np.linalg.norm(found, ORDER[norm]) == pytest.approx(least(norm, x, w, wanted), rel=1e-4)


def least(norm: str, x: np.ndarray, w: np.ndarray, wanted: float) -> float:
    """Return the norm of the smallest change, by HiGHS for linear ones and by SLSQP for L2."""
    n, walls = len(x), list(zip(-x, 1 - x, strict=True))
    if norm == "l2":
        start = np.where(w > 0, 1 - x, -x) * wanted / (np.abs(w) * np.where(w > 0, 1 - x, x)).sum()
        plane = {"type": "eq", "fun": lambda d: w @ d - wanted}
        done = minimize(
            lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=walls, constraints=plane, method="SLSQP", tol=1e-12
        )
        return math.sqrt(done.fun)
    # |d| <= t, with one t for all entries in L-inf and one each in L1.
    count = 1 if norm == "linf" else n
    bound = np.ones((n, 1)) if norm == "linf" else np.eye(n)
    above = np.block([[np.eye(n), -bound], [-np.eye(n), -bound]])
    done = linprog(
        np.r_[np.zeros(n), np.ones(count)],
        A_ub=above,
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[w, np.zeros(count)][None],
        b_eq=[wanted],
        bounds=[*walls, *[(0, None)] * count],
    )
    return float(done.fun)


def test_a_shift_beyond_the_box_goes_as_far_as_the_box() -> None:
    points, normals, shifts = planes(0, 1.0)
    for norm in NORMS:
        change = nearest_on_plane(points, normals, 10 * shifts.abs() + 100, norm)
        ends = torch.where(normals > 0, 1 - points, -points) * (normals != 0)
        torch.testing.assert_close(change, ends)


@pytest.mark.parametrize("attack", [FabT, Fab, ApgdCe])
def test_a_linear_network_falls_where_its_boundary_is_in_reach(attack: type[Attack]) -> None:
    inputs, weight = pictures(12, 6, 6), torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(5))
    judge = Judge(Linear(weight))
    labels = judge(inputs).argmax(1)
    score = judge(inputs)[:, 0]
    for epsilon in (0.01, 0.05, 0.2):
        away = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None] * weight.sign()
        farthest = judge((inputs + epsilon * away).clamp(0, 1))[:, 0]
        reached = farthest.sign() != score.sign()
        # Those whose boundary lies within the overshoot of the ball's surface may go either way.
        clear = farthest.abs() > 0.06 * (farthest - score).abs()
        options = {} if attack is ApgdCe else {"steps": 30}
        found = attack(epsilon=epsilon, **options).perturb(judge, inputs, labels, rng=draws(12)).inputs
        fallen = judge(found).argmax(1) != labels
        assert torch.equal(fallen[clear], reached[clear])
        assert bool(clear.any())
