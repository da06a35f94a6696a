"""LSQ, PACT and DoReFa: gradients by hand, torch's own learnable quantization, the papers' formulas in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seatrial.core.precision import Precision
from seatrial.core.recipe import Affine
from seatrial.errors import BadInput
from seatrial.quant.dorefa import ConstantClip, DoReFa, SquashedWeight
from seatrial.quant.lsq import LSQ, LearnedStep
from seatrial.quant.pact import PACT, LearnedClip

UNSIGNED2 = Precision(2, signed=False)
WEIGHT = Precision(4, signed=True, symmetric=True, axis=0, narrow=True)


def grid(bits: int, signed: bool, scale: float, zero: int = 0) -> Affine:
    return Affine(bits, signed, torch.tensor(scale), torch.tensor(zero))


def seen(seed: int, count: int = 4000, *, positive: bool = True) -> Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return x.abs() if positive else x


# LSQ


def test_the_gradients_of_lsq_by_hand() -> None:
    """Two bits, codes 0 to 3, step 0.5: x / s is -1, 0.4, 2.2, 3.9 and so are the four cases of eq. 3."""
    learned = LearnedStep(grid(2, False, 0.5), None)
    x = torch.tensor([[-0.5, 0.2, 1.1, 1.95]], requires_grad=True)
    out = learned(x)
    assert torch.allclose(out, torch.tensor([[0.0, 0.0, 1.0, 1.5]]))
    out.backward(torch.tensor([[1.0, 1.0, 10.0, 100.0]]))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([[0.0, 1.0, 10.0, 0.0]]))
    # -Q_N = 0; round(0.4) - 0.4 = -0.4; round(2.2) - 2.2 = -0.2; Q_P = 3. N = 4 values, Q = 3.
    wanted = (0 - 0.4 - 10 * 0.2 + 100 * 3) / math.sqrt(4 * 3)
    assert learned.step.grad is not None
    assert float(learned.step.grad) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.floats(0.05, 2.0), st.integers(0, 1000), st.floats(0.5, 3))
def test_lsq_clamps_before_it_rounds(bits: int, scale: float, seed: int, width: float) -> None:
    """Eq. 1 and 2 of the paper, written out for autograd; eq. 3 and 5 follow from them."""
    learned = LearnedStep(grid(bits, True, scale), None)
    low, high = learned.start.codes
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)).double() * width * scale * high
    beyond = (x / scale).abs() - torch.where(x < 0, -low, high)
    x = x[(beyond.abs() > 2e-3).all(0).expand(2, -1)].view(2, -1)
    mine, other = (x.float().clone().requires_grad_() for _ in range(2))
    step = torch.tensor(scale, requires_grad=True)
    placed = (other / step).clamp(low, high)
    wanted = (placed + (placed.round() - placed).detach()) * step
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    (learned(mine) * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert step.grad is not None
    assert learned.step.grad is not None
    assert torch.allclose(mine.grad, other.grad)
    factor = 1 / math.sqrt(x.shape[1] * high)
    assert float(learned.step.grad) == pytest.approx(factor * float(step.grad), rel=1e-3, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8), st.booleans(), st.floats(0.01, 2.0), st.integers(0, 1000), st.integers(0, 3), st.floats(0.1, 3)
)
def test_lsq_is_torchs_learnable_quantization(
    bits: int, signed: bool, scale: float, seed: int, zero: int, width: float
) -> None:
    zero = 0 if signed else min(zero, 2**bits - 1)
    learned = LearnedStep(grid(bits, signed, scale, zero), None)
    low, high = learned.start.codes
    factor = 1 / math.sqrt(64 * max(1, high - zero))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * width
    # Away from the edges between codes, where torch multiplies by 1 / s and we divide by s.
    fraction = (x / scale - 0.5).frac().abs()
    x = torch.where((fraction < 1e-3) | (fraction > 1 - 1e-3), x + 0.1 * scale, x)
    # Nor where the two differ by rule: half a step beyond the ends, torch lets gradients through.
    band = ((x / scale + zero).clamp(low, high) != x / scale + zero) & ((x / scale).round() + zero).clamp(low, high).eq(
        (x / scale).round() + zero
    )
    x = torch.where(band, zero * 0.0, x)
    mine, other = (x.clone().requires_grad_() for _ in range(2))
    step = torch.tensor([scale], requires_grad=True)
    offset = torch.tensor([float(zero)], requires_grad=True)
    wanted = torch.ops.aten._fake_quantize_learnable_per_tensor_affine(other, step, offset, low, high, factor)
    weights = torch.randn(2, 64, generator=torch.Generator().manual_seed(seed + 1))
    found = learned(mine)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert mine.grad is not None
    assert other.grad is not None
    assert step.grad is not None
    assert learned.step.grad is not None
    assert torch.allclose(mine.grad, other.grad)
    assert float(learned.step.grad) == pytest.approx(float(step.grad), rel=1e-3, abs=1e-4)


def test_a_step_of_lsq_starts_as_in_the_paper() -> None:
    weight = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    learned = LSQ().on_weight(weight, WEIGHT)
    wanted = 2 * weight.abs().flatten(1).mean(1) / math.sqrt(7)
    assert torch.allclose(learned.grid().scale, wanted)
    whole = LSQ().on_weight(weight, Precision(4, signed=True, symmetric=True, narrow=True)).grid()
    assert float(whole.scale) == pytest.approx(float(2 * weight.abs().mean() / math.sqrt(7)))
    assert LSQ().on_activation(seen(0), Precision(4)).grid().scale == pytest.approx(
        float(2 * seen(0).mean() / math.sqrt(15)), rel=1e-5
    )


def test_the_factor_of_lsq_counts_what_shares_a_step() -> None:
    weight = torch.full((3, 2, 2, 2), 0.26)
    learned = LSQ().on_weight(weight, WEIGHT)
    assert isinstance(learned, LearnedStep)
    with torch.no_grad():
        learned.step.fill_(0.1)
    learned(weight).sum().backward()
    assert learned.step.grad is not None
    wanted = 8 * (3 - 2.6) / math.sqrt(8 * 7)  # 8 weights of each channel, Q = 7
    assert torch.allclose(learned.step.grad, torch.full((3,), wanted), rtol=1e-4)


def test_a_step_below_zero_counts_as_its_absolute_value() -> None:
    learned = LearnedStep(grid(4, True, 0.25), None)
    x = seen(1, positive=False).reshape(4, -1)
    wanted = learned(x)
    with torch.no_grad():
        learned.step.neg_()
    assert torch.equal(learned(x), wanted)
    assert float(learned.grid().scale) == 0.25
    with torch.no_grad():
        learned.step.zero_()
    assert bool(learned(x).isfinite().all())


# PACT


def test_the_gradients_of_pact_by_hand() -> None:
    """Two bits, alpha 1.5: alpha gets the gradient of what is at or above it alone (eq. 3)."""
    learned = LearnedClip(grid(2, False, 0.5))
    assert float(learned.alpha.detach()) == 1.5
    x = torch.tensor([-0.5, 0.2, 1.1, 1.95, 7.0], requires_grad=True)
    out = learned(x)
    assert torch.allclose(out, torch.tensor([0.0, 0.0, 1.0, 1.5, 1.5]))
    out.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert x.grad is not None
    assert learned.alpha.grad is not None
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 4.0, 0.0, 0.0]))
    assert float(learned.alpha.grad) == 24.0


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.floats(0.2, 4.0), st.integers(0, 1000))
def test_pact_is_its_formula(bits: int, alpha: float, seed: int) -> None:
    """eq. 1 and 2: y = 0.5 (|x| - |x - alpha| + alpha), rounded to 2^k - 1 steps."""
    learned = LearnedClip(grid(bits, False, alpha / (2**bits - 1)))
    x = (2 * seen(seed, 200, positive=False)).double().numpy()
    clipped = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)
    steps = clipped * (2**bits - 1) / alpha
    clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-3  # float32 may round an edge to the other side
    wanted = np.round(steps) * alpha / (2**bits - 1)
    found = learned(torch.from_numpy(x).float()).detach().numpy()
    assert np.allclose(found[clear], wanted[clear], atol=1e-5)


def test_pact_clips_both_sides_of_signed_values() -> None:
    learned = LearnedClip(grid(4, True, 0.1))
    x = torch.tensor([-3.0, 3.0, 0.25], requires_grad=True)
    out = learned(x)
    assert torch.allclose(out, torch.tensor([-0.8, 0.7, 0.2]))
    out.backward(torch.tensor([1.0, 1.0, 1.0]))
    assert learned.alpha.grad is not None
    assert float(learned.alpha.grad) == pytest.approx(-8 / 7 + 1)


def test_the_penalty_of_pact_is_half_the_decay_of_squared_clips() -> None:
    module = torch.nn.ModuleList([LearnedClip(grid(2, False, 0.5)), LearnedClip(grid(4, False, 0.1))])
    assert float(PACT(decay=0.1).penalty(module).detach()) == pytest.approx(0.05 * (1.5**2 + 1.5**2))
    assert float(PACT().penalty(torch.nn.Linear(2, 2))) == 0
    with pytest.raises(BadInput):
        PACT(decay=-1.0)


# DoReFa


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000), st.floats(0.05, 3.0))
def test_squashed_weights_are_their_formula(bits: int, seed: int, width: float) -> None:
    weight = seen(seed, 60, positive=False).reshape(5, 12) * width
    learned = SquashedWeight(weight, Precision(bits, signed=True, symmetric=True, axis=0, narrow=True))
    top = 2 ** (bits - 1) - 1
    squashed = np.tanh(weight.double().numpy())
    squashed /= np.abs(squashed).max()
    gain = (squashed * weight.double().numpy()).sum() / (squashed**2).sum()
    steps = squashed * top
    clear = np.abs(np.abs(steps - np.trunc(steps)) - 0.5) > 1e-3
    found = learned(weight).detach().numpy()
    assert np.allclose(found[clear], (np.round(steps) / top * gain)[clear], atol=1e-5 * gain)
    assert np.abs(found).max() == pytest.approx(gain, rel=1e-5)
    assert torch.allclose(learned.grid().scale, torch.full((5,), float(gain / top)), rtol=1e-4)


def test_the_gradient_of_a_squashed_weight_is_that_without_rounding() -> None:
    weight = torch.tensor([[0.3, -0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    learned = SquashedWeight(weight.float(), WEIGHT).double()
    factors = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    (learned(weight) * factors).sum().backward()
    squashed = twin.tanh()
    (squashed / squashed.abs().max() * learned.gain * factors).sum().backward()
    assert weight.grad is not None
    assert twin.grad is not None
    assert torch.allclose(weight.grad, twin.grad)


def test_dorefa_clips_activations_at_one_or_where_calibration_ends() -> None:
    at_one = DoReFa(clip=1.0).on_activation(3 * seen(0), UNSIGNED2)
    assert isinstance(at_one, ConstantClip)
    x = torch.tensor([-1.0, 0.1, 0.4, 0.9, 1.1, 2.0], requires_grad=True)
    out = at_one(x)
    # eq. 5 with k = 2: round(3 x) / 3.
    assert torch.allclose(out, torch.tensor([0.0, 0.0, 1 / 3, 1.0, 1.0, 1.0]))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]))
    by_range = DoReFa().on_activation(3 * seen(0), Precision(8)).grid()
    assert 3 < float(by_range.scale) * 255 <= float(3 * seen(0).max()) * 1.02
    with pytest.raises(BadInput):
        DoReFa(clip=0.0)


@pytest.mark.parametrize("method", [LSQ(), PACT(), DoReFa()], ids=lambda method: type(method).__name__)
def test_tensors_of_zeros_and_of_one_sign_have_a_grid(method: LSQ | PACT | DoReFa) -> None:
    for values in (torch.zeros(50), -seen(3, 50), seen(3, 50, positive=False)):
        for precision in (Precision(4), Precision(4, signed=False)):
            learned = method.on_activation(values, precision)
            low, high = learned.grid().codes
            assert low <= int(learned.grid().zero_point) <= high
            assert float(learned.grid().scale) > 0
            assert bool(learned(values.reshape(2, -1)).isfinite().all())
    flat = method.on_weight(torch.zeros(3, 4), WEIGHT)
    assert torch.equal(flat(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert bool((flat.grid().scale > 0).all())
