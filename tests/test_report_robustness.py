"""The page of `seatrial robustness`, made from its JSON."""

from __future__ import annotations

import re
from typing import Any

import pytest

from seatrial.report.robustness_page import render_robustness

HOSTILE = "<script>alert(1)</script>"


def cell(family: str, name: str, **given: Any) -> dict[str, Any]:
    """Return one cell as the job writes it, done, at 50 %."""
    blank = dict.fromkeys(
        ("option", "norm", "severity", "access", "reason", "difference", "difference_low", "difference_high")
    ) | dict.fromkeys(("churn", "kl", "picture_difference", "AR", "robust_accuracy", "zero_gradient", "queries"))
    base = {"model": "net", "variant": "w8a8", "target": "openvino", "family": family, "name": name}
    figures = {"metric": "top1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "clean": 0.9, "status": "done"}
    return {**blank, **base, **figures, **given}


def page(cells: list[dict[str, Any]], **given: Any) -> str:
    entry = {
        "model": "net", "variant": "w8a8", "target": "openvino", "clean": 0.9, "AR": {}, "WCAR": {"middle": 0.25},
        "NR": None, "mCE": None, "relative_mCE": None, "SR_mean": None, "SR_std": None, "SR_ddof": 1, "SR_cells": 0,
        "system": [], "combined_drop": 0.125,
        "chain": [{"noise": "decoder", "option": "pyav", "value": 0.775, "drop": 0.125}],
        "intervals": {"WCAR": {"middle": {"low": 0.2, "high": 0.3}}},
    }  # fmt: skip
    data: dict[str, Any] = {
        "profile": "quick",
        "models": [{"name": "net", "source": "net.pt2", "digest": "00", "labels": "as the model"}],
        "data": {"name": "pictures", "n": 100, "n_attacks": 100, "classes": 10, "digest": "00", "bad": []},
        "machine": {"cpu": "a chip", "cores": 2},
        "seed": 0,
        "cells": cells,
        "summary": [entry],
        "masking": [],
        "warnings": [],
    }
    return render_robustness({**data, **given}, {"pictures": []})


def test_every_section_has_its_figures() -> None:
    moved = {"value": 0.1, "low": 0.05, "high": 0.15}
    known = {"difference": -0.02, "churn": moved, "kl": moved, "picture_difference": moved}
    shown = page(
        [
            cell(
                "attack", "pgd", norm="linf", severity="2/255", access="transfer", AR=0.4, zero_gradient=0.1, queries=20
            ),
            cell("corruption", "fog", severity=3, value=0.625),
            cell("corruption", "snow", severity=3, value=None, status="failed", reason="no memory"),
            cell("system", "resize", option="opencv-area", difference_low=-0.04, difference_high=0.01, **known),
            cell("system", "resize", option="opencv-nearest", difference_low=-0.04, difference_high=-0.01, **known),
            cell("system", "decoder+resize", option="pyav+opencv-area"),
            cell("system", "decoder+resize", option="pillow+opencv-area", value=None, status="no-noise", reason="same"),
        ]
    )
    for section in ("attacks", "masking", "corruptions", "grid", "system", "chain", "open"):
        assert f'<section id="{section}">' in shown
    assert "62.5" in shown
    assert "no memory" in shown
    assert '<span class="quiet">−2.0 (−4.0 to 1.0)</span>' in shown  # its interval holds 0
    assert "<b>−2.0 (−4.0 to −1.0)</b>" in shown
    assert "25.0" in shown
    assert "−12.5" in shown
    grid = shown[shown.index('<section id="grid">') :]
    assert ">90.0<" in grid[: grid.index("</section>")]  # what changes nothing has the clean figure


def test_sections_without_a_cell_are_left_out() -> None:
    shown = page([cell("corruption", "fog", severity=3)])
    assert '<section id="attacks">' not in shown
    assert '<section id="grid">' not in shown
    assert '<section id="corruptions">' in shown


def test_a_page_is_the_same_twice_and_asks_for_nothing() -> None:
    cells = [cell("attack", "pgd", norm="linf", severity="2/255", access="white-box")]
    assert page(cells) == page(cells)
    written = re.sub(r"<script>.*?</script>", "", page(cells), flags=re.DOTALL)
    assert not re.search(r'(src|href)="https?:', written)


@pytest.mark.parametrize("where", ["model", "variant", "option"])
def test_names_cannot_slip_a_script_in(where: str) -> None:
    shown = page(
        [
            cell("attack", "pgd", norm="linf", severity="2/255", access="transfer", **{where: HOSTILE}),
            cell("system", "resize", difference=0.0, difference_low=-1.0, difference_high=1.0, **{where: HOSTILE}),
        ],
        warnings=[HOSTILE],
        masking=[{"model": HOSTILE, "variant": "a", "target": "b", "attack": "pgd", "norm": "linf", "severity": "1"}
                 | {"text": HOSTILE}],
    )  # fmt: skip
    assert HOSTILE not in shown
