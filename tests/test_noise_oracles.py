"""Attacks against foolbox at equal settings and equal starts, and MIM against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacked import Judge, draws, trained_digits
from torch import Tensor, nn

from seatrial.core.noise import Attack
from seatrial.noise.ascent import random_start
from seatrial.noise.ball import ball_around
from seatrial.noise.fgsm import FGSM
from seatrial.noise.mim import MIM
from seatrial.noise.pgd import PGD

EPSILON = {"linf": 0.1, "l2": 0.7, "l1": 3.0}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads, by far so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subject() -> tuple[nn.Module, Tensor, Tensor]:
    module, inputs, labels = trained_digits()
    return module, inputs[:40], labels[:40]


def start_of(norm: str, inputs: Tensor, seed: int) -> Tensor:
    epsilon = EPSILON[norm]
    return random_start(inputs, ball_around(norm, inputs, epsilon), norm, epsilon, draws(len(inputs), seed))


def ours(attack: Attack, subject: tuple[nn.Module, Tensor, Tensor]) -> Tensor:
    module, inputs, labels = subject
    return attack.perturb(Judge(module), inputs, labels, rng=draws(len(inputs))).inputs


def theirs(attack: Any, norm: str, subject: tuple[nn.Module, Tensor, Tensor]) -> Tensor:
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox as the oracle")
    module, inputs, labels = subject
    wrapped = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    starts = start_of(norm, inputs, 0)
    # The start is handed over through the method that draws it.
    attack.get_random_start = lambda x0, _: type(x0)(starts)
    return attack.run(wrapped, inputs, foolbox.criteria.Misclassification(labels), epsilon=EPSILON[norm]).detach()


def assert_equal(found: Tensor, oracle: Tensor, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """A gradient within rounding of zero may go either way, which moves a pixel; hardly any does."""
    assert ((found - oracle).abs() > 1e-5).float().mean() < 5e-4
    module, _, labels = subject
    with torch.no_grad():
        verdicts = [module(pictures).argmax(1) == labels for pictures in (found, oracle)]
    assert int((verdicts[0] != verdicts[1]).sum()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_foolboxs(norm: str, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox as the oracle")
    kinds = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}
    assert_equal(ours(FGSM(epsilon=EPSILON[norm], norm=norm), subject), theirs(kinds[norm](), norm, subject), subject)


@pytest.mark.parametrize("start", [False, True], ids=["from the picture", "from a random start"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_foolboxs(norm: str, start: bool, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """20 steps of 3/40 epsilon, RobustART's."""
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox as the oracle")
    kinds = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }
    oracle = kinds[norm](rel_stepsize=3 / 40, steps=20, random_start=start)
    found = ours(PGD(epsilon=EPSILON[norm], norm=norm, random_start=start), subject)
    assert_equal(found, theirs(oracle, norm, subject), subject)


def test_pgd_takes_slides_steps_in_l1(subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Up to where the ball ends: the projection of foolbox 3.3.4 may end outside (1.1 for 0.5 on 3 entries)."""
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox as the oracle")
    oracle = foolbox.attacks.SparseL1DescentAttack(quantile=0.99, rel_stepsize=3 / 40, steps=13)
    found = ours(PGD(epsilon=EPSILON["l1"], norm="l1", random_start=False, steps=13), subject)
    assert_equal(found, theirs(oracle, "l1", subject), subject)


@pytest.mark.parametrize("step", ["scaled", "published"])
def test_mim_is_a_plain_loop(step: Any, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """RobustART's loop: gradients over their mean absolute value, decay 1, steps of 3/40 epsilon or of 0.002."""
    module, inputs, labels = subject
    size = {"scaled": 3 / 40 * 0.1, "published": 0.002}[step]
    point, memory = start_of("linf", inputs, 0), torch.zeros_like(inputs)
    for _ in range(20):
        asked = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(asked), labels, reduction="sum"), asked)
        memory = memory + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        point = inputs + (point + size * memory.sign() - inputs).clamp(-0.1, 0.1)
        point = point.clamp(0, 1)
    result = MIM(epsilon=0.1, step=step).perturb(Judge(module), inputs, labels, rng=draws(len(inputs)))
    assert_equal(result.inputs, point, subject)
    assert np.array_equal(result.queries, np.full(len(inputs), 20))
