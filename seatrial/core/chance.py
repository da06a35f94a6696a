"""Randomness that depends on the question alone, never on sharding, order or worker."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *names: object) -> np.random.Generator:
    """Return a counter-based generator derived from `seed` and `names` (noise, severity, sample id, ...).

    Equal arguments give equal streams on every machine; different arguments give independent ones.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
