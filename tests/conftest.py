"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from seatrial.data.decode_pyav import pyav_builds

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# The same examples in every run: chance is seeded, here as everywhere. No example fails because a machine is busy.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and trained networks; tests that need it skip where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared development data (../shared/data), which this checkout does not have")
    return SHARED


@pytest.fixture
def no_pyav(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyAV cannot be imported."""
    monkeypatch.setitem(sys.modules, "av", None)
    pyav_builds.cache_clear()
    yield
    pyav_builds.cache_clear()
