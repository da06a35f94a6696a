"""The last test before a neural network enters service: quantize it for its chip, measure it there, see how it holds.

import seatrial
result = seatrial.trial("timm:resnet18", "pictures/")
result.table()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "trial": "seatrial.jobs.trial",
    "TrialResult": "seatrial.jobs.result",
    "robustness": "seatrial.jobs.robustness",
    "task_robustness": "seatrial.jobs.task_robustness",
    "language_precision": "seatrial.jobs.language_precision",
    "quantize": "seatrial.jobs.quantize",
    "qat": "seatrial.jobs.qat",
    "harden": "seatrial.jobs.harden",
    "evaluate": "seatrial.jobs.evaluate",
    "profile": "seatrial.jobs.profile",
    "open_model": "seatrial.models.opened",
    "open_data": "seatrial.data.files",
    "open_task_data": "seatrial.data.task_files",
    "capture": "seatrial.core.graph",
    "realise": "seatrial.core.realise",
    "Recipe": "seatrial.core.recipe",
}

if TYPE_CHECKING:
    from seatrial.core.graph import capture as capture
    from seatrial.core.realise import realise as realise
    from seatrial.core.recipe import Recipe as Recipe
    from seatrial.data.files import open_data as open_data
    from seatrial.data.task_files import open_task_data as open_task_data
    from seatrial.jobs.evaluate import evaluate as evaluate
    from seatrial.jobs.harden import harden as harden
    from seatrial.jobs.language_precision import language_precision as language_precision
    from seatrial.jobs.profile import profile as profile
    from seatrial.jobs.qat import qat as qat
    from seatrial.jobs.quantize import quantize as quantize
    from seatrial.jobs.result import TrialResult as TrialResult
    from seatrial.jobs.robustness import robustness as robustness
    from seatrial.jobs.task_robustness import task_robustness as task_robustness
    from seatrial.jobs.trial import trial as trial
    from seatrial.models.opened import open_model as open_model


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import seatrial` stays quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'seatrial' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, "__version__"])
