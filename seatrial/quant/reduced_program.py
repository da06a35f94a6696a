"""A mixed integer program that is solved on the choices that can matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds as Box
from scipy.optimize import linprog, milp

from seatrial.errors import SeatrialError
from seatrial.numerics.silenced import silenced

_LONGEST_S = 60.0

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


def minimized(
    cost: Numbers, equal: Any, left: Numbers, most: Any, right: Numbers, coupling: Indices, x: int
) -> Numbers | None:
    """Return the binaries, the first `x` variables, at the least cost; None where nothing is feasible.

    The linear relaxation comes first: its reduced costs bound from below what each choice and pair adds, so the integer
    program is asked about the cheap ones only, and again where its answer does not rule out the others.
    """
    ones = int(left.sum())
    # Presolve spoils this linear program: three times as many iterations.
    relaxed: Any = linprog(cost, most, right, equal, left, (0, None), "highs-ds", options={"presolve": False})
    if relaxed.status == 2:
        return None
    adds = np.zeros(len(cost))
    if relaxed.status == 0:
        reduced = np.maximum(np.asarray(relaxed.lower.marginals), 0.0)
        cheapest = np.full(len(left) - ones, np.inf)
        for side in coupling:
            # One side at a time: NumPy 2.4 reads past the end of values that `ufunc.at` has to broadcast.
            np.minimum.at(cheapest, side, reduced[x:])
        owner = equal[ones:, :x].tocoo()
        np.add.at(reduced, owner.col, cheapest[owner.row])
        beside = np.zeros(len(cheapest))
        beside[owner.row] = reduced[owner.col] - np.minimum(cheapest[owner.row], 1e300)
        adds = reduced
        adds[x:] += beside[coupling].sum(0)
    matrix: Any = sparse.vstack([equal, most], format="csc")
    lower, upper = np.append(left, np.full(len(right), -np.inf)), np.append(left, right)
    level, tries = float(np.sort(adds[:x])[min(2 * ones, x - 1)]), 0
    while True:
        keep = ~(adds > level + 1e-3)
        whole, within = (np.arange(len(cost)) < x)[keep], (matrix[:, keep], lower, upper)
        options = {"mip_rel_gap": 0, "time_limit": _LONGEST_S}
        with silenced():
            found = milp(cost[keep], integrality=whole, bounds=Box(0, 1), constraints=within, options=options)
        if found.status == 2 or "infeasible or unbounded" in found.message:
            if keep.all():
                return None
            tries += 1
            level = 8 * level + 1 if tries < 3 else math.inf
        elif found.x is None or found.status == 1:
            raise SeatrialError(f"the integer program was not solved: {found.message}")
        elif keep.all() or found.fun - relaxed.fun <= level:
            picked = np.zeros(x)
            picked[keep[:x]] = found.x[: keep[:x].sum()]
            return picked
        else:
            level = found.fun - relaxed.fun
