"""What a user may choose about a job on a text model, beside what all jobs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from seatrial.errors import BadInput, unknown_name

TextTask = Literal["classification", "perplexity", "multiple-choice"]
CALIBRATION_TEXTS = 128
"""How many texts calibrate where nobody says."""


@dataclass(frozen=True)
class TextSettings:
    """Options of text models; see the command line's help for each. None: the task of the model's head, the usual
    columns, the most tokens that the model reads, windows side by side.
    """

    task: TextTask | None = None
    text_column: str | None = None
    label_column: str | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.task not in (None, *get_args(TextTask)):
            raise unknown_name("task of a text model", str(self.task), get_args(TextTask))
        if self.window is not None and self.window < 2:
            raise BadInput(f"--window {self.window}", "at least 2 tokens", "give a larger number")
        if self.stride is not None and self.stride < 1:
            raise BadInput(f"--stride {self.stride}", "at least 1 token", "give a larger number")
