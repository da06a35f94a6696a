"""FGSM, PGD and Square: the laws of an attack, closed forms on linear models, and plain loops as oracles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacked import Judge, Linear, convnet, draws, pictures, trained_digits, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seatrial.core.noise import Attack
from seatrial.errors import BadInput, NotApplicable
from seatrial.noise.ball import LinfBall, budget
from seatrial.noise.fgsm import FGSM
from seatrial.noise.margin import margin
from seatrial.noise.pgd import PGD
from seatrial.noise.square import Square


def attacks(epsilon: float | str = "8/255") -> list[Attack]:
    return [
        FGSM(epsilon=epsilon),
        PGD(epsilon=epsilon, steps=5),
        PGD(epsilon=epsilon, steps=5, random_start=False),
        PGD(epsilon=epsilon, steps=5, stop_early=True),
        Square(epsilon=epsilon, queries=25),
    ]


ATTACKS = [pytest.param(attack, id=f"{type(attack).__name__}-{i}") for i, attack in enumerate(attacks())]


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


# Laws


@settings(max_examples=12, deadline=None)
@given(
    which=st.integers(0, 4),
    epsilon=st.sampled_from(["0.5/255", "2/255", "8/255", "1e-9", "0.1", "1"]),
    seed=st.integers(0, 100),
    size=st.sampled_from([(16, 16), (11, 19)]),
)
def test_results_stay_in_the_ball_and_the_unit_box(which: int, epsilon: str, seed: int, size: tuple[int, int]) -> None:
    inputs, labels = pictures(5, *size, seed=seed), torch.arange(5)
    kept = inputs.clone(), labels.clone()
    found = attacks(epsilon)[which].perturb(Judge(convnet()), inputs, labels, rng=draws(5, seed)).inputs
    distance = found - inputs
    assert found.dtype == torch.float32
    assert found.shape == inputs.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert float(distance.abs().max()) <= budget("linf", epsilon)  # in float32
    assert float((found.double() - inputs.double()).abs().max()) <= budget("linf", epsilon)  # and exactly
    assert torch.equal(inputs, kept[0])
    assert torch.equal(labels, kept[1])
    assert not found.requires_grad
    assert not inputs.requires_grad
    assert found.untyped_storage().data_ptr() != inputs.untyped_storage().data_ptr()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_layout_of_pictures_in_memory_changes_no_square(norm: str) -> None:
    inputs, labels = pictures(6), convnet()(pictures(6)).argmax(1)
    attack = Square(epsilon=0.02 if norm == "linf" else 0.5, norm=norm, queries=60)
    plain = attack.perturb(Judge(convnet()), inputs, labels, rng=draws(6))
    last = attack.perturb(Judge(convnet()), inputs.contiguous(memory_format=torch.channels_last), labels, rng=draws(6))
    assert torch.equal(plain.inputs, last.inputs)
    assert (plain.queries == last.queries).all()
    assert plain.queries.max() > 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_audited_module_is_untouched(attack: Attack) -> None:
    module = convnet()
    module.requires_grad_(True)
    before = [p.detach().clone() for p in module.parameters()]
    attack.perturb(Judge(module), pictures(4), torch.arange(4), rng=draws(4))
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters()))
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert not module.training


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_permuted_batch_gives_permuted_results(attack: Attack, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Rows of a batch may differ in the last bit by their place, which a sign may magnify in a few pixels."""
    module, inputs, labels = trained[0], trained[1][:24], trained[2][:24]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    first = attack.perturb(Judge(module), inputs, labels, rng=draws(24))
    rng = draws(24)
    second = attack.perturb(Judge(module), inputs[order], labels[order], rng=[rng[i] for i in order])
    differ = (second.inputs - first.inputs[order]).abs() > 1e-6
    assert differ.float().mean() < 0.01
    assert np.allclose(second.zero_gradient, first.zero_gradient[order], atol=0.02, equal_nan=True)
    assert (second.queries == first.queries[order]).mean() > 0.9


@pytest.mark.parametrize("attack", ATTACKS)
def test_equal_generators_give_equal_results_also_without_gradient_mode(attack: Attack) -> None:
    inputs, labels = pictures(6), torch.arange(6)
    first = attack.perturb(Judge(convnet()), inputs, labels, rng=draws(6))
    with torch.no_grad():
        second = attack.perturb(Judge(convnet()), inputs, labels, rng=draws(6))
    assert torch.equal(first.inputs, second.inputs)
    assert np.array_equal(first.queries, second.queries)


@pytest.mark.parametrize("attack", ATTACKS)
def test_queries_count_the_rows_of_every_forward_pass(
    attack: Attack, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    module, inputs, labels = trained[0], trained[1][:40], trained[2][:40]
    judge = Judge(module)
    result = attack.perturb(judge, inputs, labels, rng=draws(40))
    assert result.queries.dtype == np.int64
    assert result.queries.sum() == judge.rows
    assert result.zero_gradient.shape == (40,)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_empty_batch_is_no_trouble(attack: Attack) -> None:
    judge = Judge(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))
    result = attack.perturb(judge, torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64), rng=[])
    assert result.inputs.shape == (0, 3, 4, 4)
    assert result.queries.shape == result.zero_gradient.shape == (0,)


# Closed forms


@pytest.mark.parametrize("attack", [FGSM(epsilon=0.05), PGD(epsilon=0.05, steps=40)], ids=["FGSM", "PGD"])
def test_gradient_attacks_find_the_worst_picture_of_a_linear_model(attack: Attack) -> None:
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)) / 20
    weight[0, :2] = 0
    inputs = pictures(7, 8, 8)
    result = attack.perturb(Judge(Linear(weight)), inputs, torch.zeros(7, dtype=torch.int64), rng=draws(7))
    off = (result.inputs - worst(inputs, weight, 0.05)).abs()[:, weight != 0]
    assert off.max() < 1e-6
    assert np.allclose(result.zero_gradient, 16 / 192)
    if isinstance(attack, FGSM):
        assert torch.equal(result.inputs[:, 0, :2], inputs[:, 0, :2])


def test_a_flat_loss_is_reported_as_zero_gradient() -> None:
    judge = Judge(Linear(torch.zeros(3, 8, 8)))
    for attack in (FGSM(epsilon=0.1), PGD(epsilon=0.1)):
        result = attack.perturb(judge, pictures(3, 8, 8), torch.zeros(3, dtype=torch.int64), rng=draws(3))
        assert result.zero_gradient.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("attack", [FGSM(epsilon=0.1), PGD(epsilon=0.1)], ids=["FGSM", "PGD"])
def test_a_gradient_that_is_not_a_number_moves_nothing_out_of_the_ball(attack: Attack) -> None:
    weight = torch.ones(3, 8, 8)
    weight[1] = torch.nan
    inputs = pictures(3, 8, 8)
    result = attack.perturb(Judge(Linear(weight)), inputs, torch.zeros(3, dtype=torch.int64), rng=draws(3))
    assert ((result.inputs - inputs).abs() <= 0.1).all()  # false for NaN
    assert (result.zero_gradient >= 1 / 3).all()


# Plain loops as oracles


def test_pgd_equals_a_plain_loop(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    module, inputs, labels = trained[0], trained[1][:32], trained[2][:32]
    epsilon = 0.1
    start = torch.stack([torch.from_numpy(g.random((3, 8, 8), dtype=np.float32)) for g in draws(32)])
    point = (inputs + epsilon * (2 * start - 1)).clamp(0, 1)
    for _ in range(20):
        point = point.detach().requires_grad_()
        F.cross_entropy(module(point), labels, reduction="sum").backward()
        assert point.grad is not None
        point = point.detach() + 3 / 40 * epsilon * point.grad.sign()
        point = (inputs + (point - inputs).clamp(-epsilon, epsilon)).clamp(0, 1)
    module.zero_grad()
    result = PGD(epsilon=epsilon).perturb(Judge(module), inputs, labels, rng=draws(32))
    assert ((result.inputs - point).abs() > 1e-5).float().mean() < 0.01
    assert (result.queries == 20).all()


def test_attacks_are_as_strong_as_they_should_be(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    """More steps find more; a sample that stops early or falls to Square is misclassified indeed."""
    module, inputs, labels = trained

    def robust(attack: Attack) -> Tensor:
        return module(attack.perturb(Judge(module), inputs, labels, rng=draws(len(inputs))).inputs).argmax(1) == labels

    clean = module(inputs).argmax(1) == labels
    epsilon = 0.1
    fgsm, pgd = robust(FGSM(epsilon=epsilon)), robust(PGD(epsilon=epsilon))
    early, square = robust(PGD(epsilon=epsilon, stop_early=True)), robust(Square(epsilon=epsilon, queries=300))
    assert pgd.sum() <= fgsm.sum() < 0.8 * clean.sum()
    assert abs(int(early.sum()) - int(pgd.sum())) <= 5
    assert pgd.sum() <= square.sum() < 0.8 * clean.sum()


def test_stopping_early_keeps_the_first_misclassified_point(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    module, inputs, labels = trained
    judge = Judge(module)
    result = PGD(epsilon=0.15, stop_early=True).perturb(judge, inputs, labels, rng=draws(len(inputs)))
    stopped = torch.tensor(result.queries < 20)
    assert stopped.any()
    with torch.no_grad():
        assert (margin(module(result.inputs), labels)[stopped] < 0).all()
    assert [len(batch) for batch in judge.asked] == sorted((len(batch) for batch in judge.asked), reverse=True)


# The ball, the margin, and what is refused


@settings(max_examples=60, deadline=None)
@given(epsilon=st.floats(1e-12, 1.0), values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_the_ball_is_exact_and_hardly_smaller_than_asked(epsilon: float, values: list[float]) -> None:
    center = torch.tensor(values, dtype=torch.float32)[None, None, None]
    ball = LinfBall.around(center, epsilon)
    exact = center.double()
    for bound, wanted in ((ball.lower, (exact - epsilon).clamp(min=0)), (ball.upper, (exact + epsilon).clamp(max=1))):
        assert ((bound.double() - exact).abs() <= epsilon).all()
        assert ((bound - center).abs() <= epsilon).all()
        assert ((bound.double() - wanted).abs() < 1e-7 + 1e-7 * epsilon).all()
    assert (ball.lower >= 0).all()
    assert (ball.upper <= 1).all()


def test_margin_is_the_label_against_the_best_other() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 5.0], [-3.0, -4.0, -9.0]])
    assert margin(logits, torch.tensor([1, 2, 1])).tolist() == [3.0, 0.0, -1.0]
    assert logits[0].tolist() == [1.0, 5.0, 2.0]
    with pytest.raises(BadInput, match="two or more classes"):
        margin(torch.zeros(2, 1), torch.tensor([0, 0]))


@pytest.mark.parametrize("epsilon", ["8/0", "eight", "", "-1/255", 0, 2, float("nan"), float("inf"), "1e999", None])
@pytest.mark.parametrize("method", [FGSM, PGD, Square])
def test_epsilons_out_of_range_are_refused(method: type[Attack], epsilon: object) -> None:
    with pytest.raises(BadInput, match="epsilon"):
        method(epsilon=epsilon)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", [FGSM, PGD, Square])
def test_epsilon_is_a_number_or_a_fraction(method: type[Attack]) -> None:
    assert budget("linf", "8/255") == 8 / 255
    assert budget("linf", "0.5/255") == 0.5 / 255
    assert budget("linf", 0.25) == 0.25
    with pytest.raises(BadInput, match="unknown norm 'l3'"):
        method(epsilon="8/255", norm="l3")  # type: ignore[call-arg]


def test_other_options_out_of_range_are_refused() -> None:
    for option in ({"steps": 0}, {"relative_step": 0.0}, {"relative_step": 3.0}):
        with pytest.raises(BadInput):
            PGD(epsilon=0.1, **option)  # type: ignore[arg-type]
    for option in ({"queries": 1}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(BadInput):
            Square(epsilon=0.1, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "inputs",
    [
        torch.full((2, 3, 4, 4), 200.0),
        torch.full((2, 3, 4, 4), torch.nan),
        torch.rand(3, 4, 4),
        torch.rand(2, 3, 4, 4).half(),
    ],
    ids=["bytes", "nan", "unbatched", "half"],
)
def test_pictures_that_are_not_in_the_unit_box_are_refused(attack: Attack, inputs: Tensor) -> None:
    judge = Judge(Linear(torch.ones(3, 4, 4)))
    with pytest.raises(BadInput):
        attack.perturb(judge, inputs, torch.zeros(2, dtype=torch.int64), rng=draws(2))


@pytest.mark.parametrize("attack", [FGSM(epsilon=0.1), PGD(epsilon=0.1)])
def test_gradient_attacks_do_not_apply_without_gradients(attack: Attack) -> None:
    module = Linear(torch.ones(3, 4, 4))
    assert attack.needs == {"gradients", "logits"}
    with pytest.raises(NotApplicable, match="no gradients"):
        attack.perturb(Judge(module, frozenset({"logits"})), pictures(2, 4, 4), torch.zeros(2).long(), rng=draws(2))

    class Detached(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return module(inputs).detach()

    with pytest.raises(NotApplicable, match="detached"):
        attack.perturb(Judge(Detached()), pictures(2, 4, 4), torch.zeros(2).long(), rng=draws(2))


def test_square_does_not_apply_without_scores() -> None:
    assert Square(epsilon=0.1).needs == {"logits"}
    judge = Judge(Linear(torch.ones(3, 4, 4)), frozenset({"labels"}))
    with pytest.raises(NotApplicable, match="labels only"):
        Square(epsilon=0.1).perturb(judge, pictures(2, 4, 4), torch.zeros(2).long(), rng=draws(2))
