"""Where the time goes: latency of each operator of one model on one target."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from seatrial.deploy.input_adapter import foreign_artefact
from seatrial.deploy.machine import this_machine
from seatrial.deploy.operators import profile as profile_operators
from seatrial.jobs.result import latency_data
from seatrial.jobs.settings import default_threads
from seatrial.jobs.variants import SIMULATION, Variant, time_variants, usable_target
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import open_model
from seatrial.numerics.batch_norm import fold_batch_norm


def profile(
    model: str | Path | nn.Module,
    *,
    target: str = SIMULATION,
    bits: str = "float32",
    threads: int = 0,
    runs: int = 20,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the latency of a model and of each of its operators on a target, in the order of execution.

    The JSON: `{"model","machine","target","latency_ms","operators":[{"name","kind","precision","microseconds",
    "share"}]}`. Raises BadInput for a target that is not installed and NotApplicable where it cannot profile.
    """
    used = threads or default_threads()
    opened = open_model(model, **(overrides or {}))
    runtime = usable_target(target)
    with tempfile.TemporaryDirectory(prefix="seatrial-") as scratch:
        if isinstance(opened, ArtefactModel):
            artefact = foreign_artefact(opened)
        else:
            artefact = runtime.compile(fold_batch_norm(opened.graph), Path(scratch) / "model", bits=bits)
        variant = Variant("float", target, artefact)
        timing = time_variants([variant], used)[variant.label]
        operators = profile_operators(runtime, artefact, threads=used, runs=runs)
    return {
        "model": {"name": opened.name, "source": opened.source, "digest": opened.digest},
        "machine": asdict(this_machine(used)),
        "target": target,
        "latency_ms": latency_data(timing),
        "operators": [asdict(operator) for operator in operators],
    }
