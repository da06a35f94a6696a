"""Results rounded to 8 bits: on the grid, in the budget, as near to the attack's own as that allows."""

from __future__ import annotations

import pytest
import torch
from attacked import Judge, convnet, draws, pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.noise import Attack
from seatrial.errors import NotApplicable
from seatrial.noise.ball import budget
from seatrial.noise.fgsm import FGSM
from seatrial.noise.pgd import PGD
from seatrial.noise.rounded import Rounded
from seatrial.noise.square import Square

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


@settings(max_examples=12, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    epsilon=st.sampled_from(["0.5", "2", "8", "40"]),
    seed=st.integers(0, 100),
)
def test_the_result_is_on_the_grid_and_in_the_budget(norm: str, epsilon: str, seed: int) -> None:
    inputs, labels = pictures(3, 8, 8, seed=seed).mul(255).round().div(255), torch.arange(3)
    epsilon = {"linf": f"{epsilon}/255", "l2": str(min(float(epsilon), 10)), "l1": epsilon}[norm]
    attack = PGD(epsilon=epsilon, norm=norm, steps=3)
    plain = attack.perturb(Judge(convnet()), inputs, labels, rng=draws(3, seed))
    rounded = Rounded(attack=attack).perturb(Judge(convnet()), inputs, labels, rng=draws(3, seed))
    assert torch.equal(rounded.inputs, rounded.inputs.mul(255).round().to(torch.uint8).float().div(255))
    moved = (rounded.inputs.double() - inputs.double()).flatten(1)
    reached = torch.linalg.vector_norm(moved, ord=ORDER[norm], dim=1)
    assert (reached <= budget(norm, epsilon) + (1e-6 if norm == "linf" else 0)).all()
    off = rounded.inputs.double() - plain.inputs.double()
    assert float(off.abs().max()) < 1 / 255
    # Towards the original, never away from it (but for the roundings of a whole level) nor past it.
    way = plain.inputs.double() - inputs.double()
    assert (off * way.sign() <= (1e-6 if norm == "linf" else 0)).all()
    assert (moved * way.flatten(1) >= 0).all()
    assert (rounded.queries == plain.queries).all()


def test_whole_levels_stay_and_half_levels_vanish() -> None:
    inputs, labels = pictures(3, 8, 8).mul(255).round().div(255), torch.arange(3)
    judge = Judge(convnet())
    whole = FGSM(epsilon="2.001/255").perturb(judge, inputs, labels, rng=draws(3)).inputs
    kept = Rounded(attack=FGSM(epsilon="2.001/255")).perturb(judge, inputs, labels, rng=draws(3)).inputs
    assert (kept - whole).abs().max() < 1e-5
    gone = Rounded(attack=FGSM(epsilon="0.5/255")).perturb(judge, inputs, labels, rng=draws(3)).inputs
    assert torch.equal(gone, inputs)


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_a_budget_of_whole_levels_is_used_up(levels: int) -> None:
    inputs = torch.randint(20, 236, (3, 3, 8, 8), generator=torch.Generator().manual_seed(levels)).float().div(255)
    attack = Rounded(attack=FGSM(epsilon=f"{levels}/255"))
    found = attack.perturb(Judge(convnet()), inputs, torch.arange(3), rng=draws(3)).inputs
    moved = (found - inputs).mul(255).round().abs()
    assert set(moved.unique().tolist()) <= {0, levels}  # 0 where the gradient is
    assert (moved == levels).float().mean() > 0.5


@pytest.mark.parametrize("attack", [FGSM(epsilon="8/255"), Square(epsilon="8/255")], ids=["FGSM", "Square"])
def test_needs_are_those_of_the_attack(attack: Attack) -> None:
    assert Rounded(attack=attack).needs == attack.needs


def test_pictures_between_levels_have_nothing_to_round_to() -> None:
    rounded = Rounded(attack=FGSM(epsilon="8/255"))
    with pytest.raises(NotApplicable, match="8 bits"):
        rounded.perturb(Judge(convnet()), pictures(2, 8, 8), torch.arange(2), rng=draws(2))
