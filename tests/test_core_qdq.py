"""The custom operators against numpy, against ONNX's reference, and their gradients against definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from seatrial.core.qdq import narrow_float, qdq

CODES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
ZERO = torch.tensor(0)


def numpy_qdq(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int, axis: int) -> np.ndarray:
    """Round half to even, by the book."""
    if axis >= 0:
        shape = [1] * x.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    code = np.clip(np.rint(x / scale) + zero, low, high)
    return ((code - zero) * scale).astype(x.dtype)


def onnx_qdq(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, kind: str, axis: int) -> np.ndarray:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    attributes = {"axis": axis} if axis >= 0 else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "qdq",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("z", element, None),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return ReferenceEvaluator(model).run(None, {"x": x, "s": scale, "z": zero.astype(kind)})[0]


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(sorted(CODES)),
    axis=st.sampled_from([-1, 0, 1, 2]),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equal_to_numpy_and_to_onnx(seed: int, kind: str, axis: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = CODES[kind]
    count = () if axis < 0 else ((3, 4, 5)[axis],)
    scale = np.exp2(rng.integers(-8, 3, count)) if ties else rng.uniform(1e-3, 2, count)
    scale = np.asarray(scale, dtype=np.float32)
    zero = np.asarray(rng.integers(low, high + 1, count))
    shape = [1, 1, 1]
    if axis >= 0:
        shape[axis] = -1
    wide = (scale.reshape(shape), zero.reshape(shape)) if axis >= 0 else (scale, zero)
    codes = rng.uniform(low - 20, high + 20, (3, 4, 5))
    # Multiples of half a step fall between two codes exactly when the scale is a power of two.
    x = ((np.round(codes * 2) / 2 if ties else codes) - wide[1]) * wide[0]
    x = x.astype(np.float32)
    found = qdq(torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(zero), low, high, axis).numpy()
    assert np.array_equal(found, numpy_qdq(x, scale, zero, low, high, axis))
    assert np.array_equal(found, onnx_qdq(x, scale, zero, kind, axis))


def test_halves_go_to_the_even_code() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    assert qdq(x, torch.tensor(1.0), ZERO, -8, 7, -1).tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_zero_is_kept_and_rounding_twice_is_rounding_once() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.tensor(0.037), torch.tensor(19)
    once = qdq(x, scale, zero, 0, 255, -1)
    assert torch.equal(qdq(once, scale, zero, 0, 255, -1), once)
    assert qdq(torch.zeros(1), scale, zero, 0, 255, -1).item() == 0


def test_the_gradient_passes_between_the_ends_of_the_grid() -> None:
    x = torch.tensor([-3.0, -0.2, 0.0, 0.26, 3.5, 3.7, 9.0], requires_grad=True)
    weight = torch.arange(1.0, 8.0)
    (qdq(x, torch.tensor(0.5), ZERO, 0, 7, -1) * weight).sum().backward()
    # The ends are 0 and 3.5: -0.2 and 3.7 have codes 0 and 7 without being clamped, and lie outside all the same.
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_the_gradient_of_the_scale_is_that_of_lsq(axis: int) -> None:
    generator = torch.Generator().manual_seed(axis + 2)
    x = torch.randn(4, 3, 5, generator=generator).double() * 3
    gradient = torch.randn(4, 3, 5, generator=generator).double()
    scale = torch.full(() if axis < 0 else (x.shape[axis],), 0.31, dtype=torch.float64, requires_grad=True)
    zero = torch.full(scale.shape, 2)
    qdq(x, scale, zero, -4, 6, axis).backward(gradient)
    # By the formula of the paper, element by element.
    steps = np.zeros(x.shape)
    for index, value in np.ndenumerate(x.numpy()):
        ratio = value / 0.31
        code = np.rint(ratio) + 2
        steps[index] = np.rint(ratio) - ratio if -4 <= ratio + 2 <= 6 else np.clip(code, -4, 6) - 2
    wanted = steps * gradient.numpy()
    others = tuple(dim for dim in range(3) if dim != axis) if axis >= 0 else None
    assert scale.grad is not None
    np.testing.assert_allclose(scale.grad.numpy(), wanted.sum(others), rtol=1e-10, atol=1e-12)
    # What was clamped does not depend on the input: there the formula is the derivative itself.
    far = torch.full((3,), 100.0, dtype=torch.float64)

    def clamped(s: float) -> float:
        return float(qdq(far, torch.tensor(s, dtype=torch.float64), torch.tensor(2), -4, 6, -1).sum())

    slope = (clamped(0.31 + 1e-6) - clamped(0.31 - 1e-6)) / 2e-6
    single = torch.tensor(0.31, dtype=torch.float64, requires_grad=True)
    qdq(far, single, torch.tensor(2), -4, 6, -1).sum().backward()
    assert single.grad is not None
    assert single.grad.item() == pytest.approx(slope, rel=1e-6)


def test_per_channel_along_the_only_axis_of_a_vector() -> None:
    scale = torch.tensor([0.5, 0.25], requires_grad=True)
    qdq(torch.tensor([0.6, 0.6]), scale, torch.zeros(2, dtype=torch.int64), -8, 7, 0).sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor([1 - 1.2, 2 - 2.4]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_rounded_in_float32(kind: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 101).to(kind)
    scale, zero = torch.tensor(0.01), torch.tensor(300)
    found = qdq(x, scale, zero, 0, 65535, -1)
    assert found.dtype == kind
    assert torch.equal(found, qdq(x.float(), scale, zero, 0, 65535, -1).to(kind))


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_narrow_float_is_a_cast_with_a_straight_gradient(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = narrow_float(x, kind)
    y.sum().backward()
    assert torch.equal(y, x.detach().to(dtype).float())
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(20))
    narrow = x.detach().to(dtype)
    assert narrow_float(narrow, kind).data_ptr() != narrow.data_ptr()


def _layouts() -> list[Tensor]:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [x.to(memory_format=torch.channels_last), x.transpose(1, 3), x.double()]


@pytest.mark.parametrize("index", range(3))
def test_opcheck(index: int) -> None:
    x = _layouts()[index].clone(memory_format=torch.preserve_format).requires_grad_()
    count = x.shape[1]
    per_channel = (x, torch.full((count,), 0.1, requires_grad=True), torch.zeros(count, dtype=torch.int64), -8, 7, 1)
    per_tensor = (x, torch.tensor(0.1), torch.tensor(3), 0, 15, -1)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for arguments in (per_tensor, per_channel):
        torch.library.opcheck(torch.ops.seatrial.qdq.default, arguments, test_utils=checks)
    torch.library.opcheck(torch.ops.seatrial.narrow_float.default, (x, "bf16"), test_utils=checks)
