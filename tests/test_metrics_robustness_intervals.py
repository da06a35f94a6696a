"""Intervals of the figures of a variant against resampling by hand, and what counts in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.errors import BadInput
from seatrial.metrics.corruption_error import ALEXNET_CLEAN_ERROR, ALEXNET_ERROR, SEVERITIES
from seatrial.metrics.joint_draws import joint_draws
from seatrial.metrics.masking import masking_findings
from seatrial.metrics.summary import summarize

COUNT = 120
PGD = NoiseSpec("attack", "pgd", norm="linf", severity="2/255")
SQUARE = NoiseSpec("attack", "square", norm="linf", severity="2/255")
OPTIONS = ("pillow+pillow-bilinear", "pillow+opencv-area", "pyav+opencv-area", "pyav+pillow-box")


def records(correct: np.ndarray, first: int = 0, **columns: object) -> pa.Table:
    ids = [f"{first + i:04d}" for i in range(len(correct))]
    return pa.table({"sample": ids, "correct": correct.astype(bool), **columns})


def drawn(name: str, share: float, count: int = COUNT) -> np.ndarray:
    return generator(3, name).random(count) < share


def everything() -> dict[NoiseSpec | None, pa.Table]:
    tables: dict[NoiseSpec | None, pa.Table] = {None: records(drawn("clean", 0.85))}
    tables |= {PGD: records(drawn("pgd", 0.4)), SQUARE: records(drawn("square", 0.6))}
    for name in ALEXNET_ERROR:
        for severity in SEVERITIES:
            flags = drawn(f"{name} {severity}", 0.85 - 0.1 * severity)
            tables[NoiseSpec("corruption", name, severity=severity)] = records(flags)
    for option in OPTIONS:
        tables[NoiseSpec("system", "decoder+resize", option)] = records(drawn(option, 0.8))
    return tables


def by_hand(figure: Callable[[np.ndarray], float], resamples: int = 4000) -> tuple[float, float]:
    """The interval of a figure of drawn rows, one draw at a time."""
    rng = generator(11, "by hand")
    values = [figure(rng.integers(0, COUNT, COUNT)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def flags(table: pa.Table) -> np.ndarray:
    return table["correct"].to_numpy()


def test_every_interval_is_that_of_drawing_samples_by_hand() -> None:
    tables = everything()
    link = NoiseSpec("system", "decoder+resize", OPTIONS[-1])
    found = summarize(tables, chain=[(link, tables[link])], rng=generator(0), resamples=4000)
    clean, pgd, square = (flags(tables[spec]) for spec in (None, PGD, SQUARE))
    cells = [NoiseSpec("corruption", name, severity=s) for name in ALEXNET_ERROR for s in SEVERITIES]
    noisy = np.stack([flags(tables[spec]) for spec in cells])
    grid = np.stack([flags(tables[NoiseSpec("system", "decoder+resize", option)]) for option in OPTIONS])
    reference = np.array([ALEXNET_ERROR[spec.name] for spec in cells])

    def relative(rows: np.ndarray) -> float:
        worse = clean[rows].mean() - noisy[:, rows].mean(1)
        return float(100 * (worse / (reference - ALEXNET_CLEAN_ERROR)).mean())

    expected: dict[str, tuple[Callable[[np.ndarray], float], float]] = {
        "clean": (lambda rows: clean[rows].mean(), 0.01),
        "NR": (lambda rows: noisy[:, rows].mean(), 0.005),
        "mCE": (lambda rows: float(100 * ((1 - noisy[:, rows].mean(1)) / reference).mean()), 0.5),
        "relative_mCE": (relative, 2.0),
        "SR_mean": (lambda rows: grid[:, rows].mean(), 0.01),
        "combined_drop": (lambda rows: clean[rows].mean() - grid[-1, rows].mean(), 0.012),
    }
    got = found["intervals"]
    for name, (figure, tolerance) in expected.items():
        assert found[name] == pytest.approx(figure(np.arange(COUNT))), name
        assert (got[name]["low"], got[name]["high"]) == pytest.approx(by_hand(figure), abs=tolerance), name
    robust = by_hand(lambda rows: (clean & pgd)[rows].sum() / clean[rows].sum())
    worst = by_hand(lambda rows: (clean & pgd & square)[rows].sum() / clean[rows].sum())
    assert tuple(got["AR"]["pgd:linf"]["2/255"].values()) == pytest.approx(robust, abs=0.012)
    assert tuple(got["WCAR"]["middle"].values()) == pytest.approx(worst, abs=0.012)
    assert found["WCAR_attacks"] == {"middle": ["pgd:linf", "square:linf"]}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 12), st.floats(0.5, 0.95))
def test_a_deviation_lies_within_its_interval(seed: int, cells: int, share: float) -> None:
    rng = generator(seed, "cells")
    grid = [rng.random(200) < share for _ in range(cells)]
    tables: dict[NoiseSpec | None, pa.Table] = {None: records(grid[0])}
    tables |= {NoiseSpec("system", "decoder+resize", f"a+{i}"): records(row) for i, row in enumerate(grid)}
    found = summarize(tables, rng=generator(seed), resamples=300)
    assert found["SR_cells"] == cells
    assert 0 <= found["intervals"]["SR_std"]["low"] <= found["SR_std"] <= found["intervals"]["SR_std"]["high"]


def test_equal_cells_have_no_deviation_and_no_width() -> None:
    clean = records(drawn("clean", 0.8))
    tables: dict[NoiseSpec | None, pa.Table] = {None: clean}
    tables |= {NoiseSpec("system", "decoder+resize", option): clean for option in OPTIONS}
    found = summarize(tables, rng=generator(0), resamples=50)
    assert found["SR_std"] == pytest.approx(0, abs=1e-12)
    assert tuple(found["intervals"]["SR_std"].values()) == pytest.approx((0, 0), abs=1e-12)


def test_a_share_of_all_or_none_is_not_certain() -> None:
    """Of 30 samples that all stand, up to a tenth may fall elsewhere: 3 / n by the rule of three, 1 - 0.8865 here."""
    clean = records(np.ones(30, bool))
    fallen = records(np.zeros(30, bool))
    link = NoiseSpec("system", "decoder+resize", OPTIONS[0])
    tables = {None: clean, PGD: clean, SQUARE: fallen}
    found = summarize(tables, chain=[(link, clean)], rng=generator(0), resamples=50)["intervals"]
    z2 = 1.959964**2  # Wilson's interval of n in n begins at n / (n + z^2)
    for bounds in (found["clean"], found["AR"]["pgd:linf"]["2/255"]):
        assert tuple(bounds.values()) == pytest.approx((30 / (30 + z2), 1))
    for bounds in (found["WCAR"]["middle"], found["AR"]["square:linf"]["2/255"]):
        assert tuple(bounds.values()) == pytest.approx((0, z2 / (30 + z2)))
    # One is added to each count of samples that turned: 2 of 32, so z times sqrt(2 / 32 / 32).
    assert tuple(found["combined_drop"].values()) == pytest.approx((-1.959964 * 2**0.5 / 32, 1.959964 * 2**0.5 / 32))


def test_options_that_change_nothing_are_not_averaged() -> None:
    """Else the mean drop of a noise would depend on how many names its reference has."""
    clean = records(np.ones(10, bool))
    worse = records(np.r_[np.ones(7, bool), np.zeros(3, bool)])
    decoders = {NoiseSpec("system", "decoder", "opencv"): clean, NoiseSpec("system", "decoder", "pyav"): worse}
    still = {NoiseSpec("system", "exif", "ignored"): clean}
    (found,) = summarize({None: clean, **decoders, **still}, rng=generator(0), resamples=20)["system"]
    assert found == {"noise": "decoder", "option": "pyav", "mean": pytest.approx(0.3), "max": pytest.approx(0.3)}


def test_draws_are_joined_by_sample_never_by_position() -> None:
    """A cell that holds the later samples alone, in another order, counts as those samples do."""
    clean, noisy = drawn("clean", 0.85), drawn("pgd", 0.5)
    order = pa.array(generator(0, "order").permutation(40))
    part = records(noisy[80:], first=80).take(order)
    whole = records(clean).take(pa.array(generator(1, "order").permutation(COUNT)))
    found = joint_draws({None: whole, PGD: part}, [(PGD,)], rng=generator(5), resamples=200)
    counts = generator(5).multinomial(COUNT, np.full(COUNT, 1 / COUNT), size=200)
    late = counts[:, 80:]
    assert found.accuracy(None) == pytest.approx(counts @ clean / COUNT)
    assert found.accuracy(PGD) == pytest.approx(late @ noisy[80:] / late.sum(1))
    assert found.standing((PGD,)) == pytest.approx(late @ (clean & noisy)[80:] / (late @ clean[80:]))


def test_a_summary_without_clean_records_is_refused() -> None:
    with pytest.raises(BadInput, match="records of noises alone"):
        summarize({PGD: records(drawn("pgd", 0.4))}, rng=generator(0))


def test_an_attacker_who_sees_answers_only_must_not_win() -> None:
    clean = records(np.ones(100, bool))
    zeros = np.zeros(100, np.float32)
    blind = NoiseSpec("attack", "hopskipjump", norm="linf", severity="2/255")
    tables = {
        None: clean,
        PGD: records(np.arange(100) < 60, zero_gradient=zeros),
        blind: records(np.arange(100) < 50, zero_gradient=np.full(100, np.nan, np.float32)),
    }
    (found,) = masking_findings(tables)
    assert found["by"] == "hopskipjump"
    assert found["value"] == pytest.approx(0.1)
    assert "sees answers only" in found["text"]


def test_attackers_are_compared_on_the_samples_that_both_attacked() -> None:
    """The blind one was put on the samples that the other had broken: it does nothing by itself."""
    clean = records(np.ones(100, bool))
    strong = records(np.arange(100) < 60, zero_gradient=np.zeros(100, np.float32))
    hard = records(np.zeros(30, bool), first=70, zero_gradient=np.full(30, np.nan, np.float32))
    assert masking_findings({None: clean, PGD: strong, SQUARE: hard}) == []
    assert masking_findings({None: clean, PGD: strong, SQUARE: records(np.zeros(30, bool), first=40)}) != []
