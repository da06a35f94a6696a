"""The language of `--fail-if` against Python's own arithmetic, and everything that it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import BadInput
from seatrial.metrics.limits import MOST_CHARACTERS, check_limit, evaluate_limit, limit_values

VALUES = {
    "float": {"top1": 0.58, "latency_ms": 3.2, "agreement": None},
    "w8a8": {"top1": 0.565, "latency_ms": 1.34, "size_bytes": 1.3e6},
    "w8a8@openvino": {"top1": 0.56},
    "and_more": {"top1": 0.1},
}


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("w8a8.top1 < float.top1 - 0.01", True),
        ("w8a8.top1 < float.top1 - 1%", True),
        ("w8a8.top1 < float.top1 - 2 %", False),
        ("w8a8.latency_ms*2<float.latency_ms", True),
        ("w8a8@openvino.top1 == .56", True),
        ("not (w8a8.top1 > 50% and float.latency_ms > 1e1)", True),
        ("float.top1 - w8a8.top1 >= 0.016 or w8a8.size_bytes > 1.2e6", True),
        ("0.5 < w8a8.top1 < float.top1 <= 1", True),
        ("-w8a8.top1 > -50%", False),
        ("float.top1-w8a8.top1 < 1%", False),
        ("+1 != 1", False),
        ("and_more.top1 < 1 and and_more.top1 > 0", True),
        ("\t( w8a8.top1\n< 1 )  ", True),
    ],
)
def test_conditions(expression: str, holds: bool) -> None:
    assert evaluate_limit(expression, VALUES) is holds


NUMBERS = st.one_of(
    st.sampled_from(["float.top1", "w8a8.latency_ms", "w8a8@openvino.top1", "2", "0.125", "3e-2"]),
    st.integers(0, 1000).map(str),
)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=6,
)
COMPARED = st.tuples(SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), SUMS).map(" ".join)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("not {}".format),
    ),
    max_leaves=4,
)


@given(CONDITIONS)
def test_it_means_what_python_means(expression: str) -> None:
    class Figures:
        def __init__(self, figures: dict[str, float | None]) -> None:
            self.__dict__.update(figures)

    names = {name.replace("@", "_at_"): Figures(figures) for name, figures in VALUES.items()}
    names["float_"] = names.pop("float")
    python = expression.replace("float.", "float_.").replace("@", "_at_")
    assert evaluate_limit(expression, VALUES) is eval(python, {"__builtins__": {}}, names)


def understood(text: str) -> bool:
    """Whether a limit was answered; any other exception than BadInput fails the test."""
    try:
        return evaluate_limit(text, VALUES) in (True, False)
    except BadInput:
        return False


WORDS = ["w8a8.top1", "<", "1%", "(", ")", "and", "not", "-", "/", "0", "1e300", "*"]


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join))
def test_any_text_is_a_condition_or_bad_input(text: str) -> None:
    assert understood(text) in (True, False)


@pytest.mark.parametrize("text", ["-" * 980 + "1 < 2", "not " * 240 + "1 < 2", "(" * 450 + "1 < 2" + ")" * 450])
def test_deep_nesting_ends_without_a_crash(text: str) -> None:
    assert understood(text) in (True, False)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "w8a8.top1",
        "1",
        "w8a8.top1 < 1 < ",
        "w8a8.top1 = 1",
        "w8a8.top1 < 2 ** 9",
        "w8a8.top1 // 2 < 1",
        "w8a8.top1 < 5 % 2",
        "w8a8.top1 < 5 %2",
        "abs(w8a8.top1) < 1",
        "w8a8.top1.real < 1",
        "w8a8['top1'] < 1",
        "__import__('os').system('x') < 1",
        "().__class__ == 1",
        "lambda: 1",
        "w8a8.top1 if 1 else 2",
        "[1] < 2",
        "1 < 'a'",
        "w8a8.top1 (1) < 1",
        "1 in w8a8.top1",
        "w8a8.top1 is 1",
        "1; 2",
        "1 < 2 # so",
        "w8a8.top1 := 1",
        "(1 < 2) < 3",
        "(1 < 2) + 1 > 0",
        "1 and 2",
        "not 1",
        "0x10 < 20",
        "1_000 < 2",
        "1j < 2",
        "inf > 1",
        "1e999 > 1",
        "w8a8.top1 / (1 - 1) > 1",
        "1e308 * 1e308 > float.agreement",
        "(" * 300 + "1" + ")" * 300 + " < 2",
        "1 < 2" + " " * MOST_CHARACTERS + "or 1 < 2",
        "１ < 2",
    ],
)
def test_anything_else_is_refused(expression: str) -> None:
    with pytest.raises(BadInput):
        evaluate_limit(expression, VALUES)
    with pytest.raises(BadInput):
        check_limit(expression, ())


def test_a_limit_is_checked_before_there_are_figures() -> None:
    noises = ("system", "pgd", "gaussian_noise")
    check_limit("w8a8.top1 < float.top1 - 1% or any@torch.gaussian_noise_worst < 0.1 * (w4a8.pgd - w8a8.pgd)", noises)
    with pytest.raises(BadInput, match=r"unknown metric 'top'.*did you mean 'top1'"):
        check_limit("w8a8.top < 1", noises)
    with pytest.raises(BadInput, match="unknown metric 'fgsm'"):
        check_limit("w8a8.fgsm < 1", noises)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("w8a9.top1 < 1", "unknown variant 'w8a9'.*did you mean 'w8a8'"),
        ("w8a8.top_1 < 1", "unknown metric of w8a8 'top_1'.*did you mean 'top1'"),
        ("float.agreement < 1", "float.agreement, which this run did not measure"),
        ("1 < 2 or float.agreement < 1", "did not measure"),
        ("1 < 2 or nobody.top1 < 1", "unknown variant"),
        ("1 < 1e999", "1e999"),
    ],
)
def test_messages(expression: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        evaluate_limit(expression, VALUES)


def test_values_of_a_trial() -> None:
    def cell(family: str, name: str, value: float | None, status: str = "done") -> dict[str, object]:
        return {"family": family, "name": name, "value": value, "status": status}

    noise = [cell("attack", "pgd", 0.1), cell("attack", "pgd", 0.3), cell("attack", "fgsm", 0.5)]
    noise.append(cell("system", "decoder", None, "failed"))
    time = {"median": 1.3, "p10": 1.2, "p90": 1.5, "runs": 9, "batch": 1, "threads": 2}
    result = {
        "variants": [
            {"name": "float", "target": "openvino", "top1": 0.6, "value": 0.6, "latency_ms": None, "noise": []},
            {"name": "w8a8", "target": "openvino", "top1": 0.5, "value": 0.5, "latency_ms": time, "noise": noise},
            {"name": "w8a8", "target": "torch", "top1": 0.51, "value": 0.51, "latency_ms": None},
            {"name": "w4a8", "target": "openvino", "top1": 0.4, "value": 0.4},
            {"name": "w4a8", "target": "onnxruntime", "top1": 0.4, "value": 0.4},
            {"name": "w2a8", "target": "torch", "top1": 0.2, "value": 0.2},
        ]
    }
    values = limit_values(result)
    assert evaluate_limit("w8a8.top1 == 0.5 and w8a8@torch.top1 == 0.51 and w2a8.top1 == 20%", values)
    assert values["w8a8"]["latency_ms"] == 1.3
    assert values["w8a8"]["attack"] == pytest.approx(0.3)
    assert values["w8a8"]["attack_worst"] == values["w8a8"]["pgd_worst"] == 0.1
    assert values["w8a8"]["pgd"] == pytest.approx(0.2)
    with pytest.raises(BadInput, match="did not measure"):
        evaluate_limit("w8a8.decoder < 1", values)
    with pytest.raises(BadInput, match="did not measure"):
        evaluate_limit("float.latency_ms < 1", values)
    with pytest.raises(BadInput, match=r"several targets.*w4a8@openvino or w4a8@onnxruntime"):
        evaluate_limit("w4a8.top1 < 1", values)
