"""One question of a sweep, named by the hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from seatrial.core.noise import NoiseSpec


@dataclass(frozen=True)
class Cell:
    """One variant under one noise.

    `question` holds, as JSON text with sorted keys, everything that the answers depend on: digests of weights,
    recipe and data, pipeline, noise and its parameters, seed, batch, threads, target and library versions. Timings
    are no part of it.
    """

    variant: str
    target: str
    noise: NoiseSpec | None
    question: str

    @property
    def key(self) -> str:
        """32 hexadecimal digits that name the cell's file."""
        return hashlib.blake2b(self.question.encode(), digest_size=16).hexdigest()


def question(**parts: Any) -> str:
    """Return the canonical JSON of a question; raises TypeError for values that JSON cannot hold."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(*parts: bytes | str) -> str:
    """Return the hash of some contents, as used in questions: 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.hexdigest()
