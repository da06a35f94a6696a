"""The batches of a plan, loaded once for all variants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar, final

import numpy as np

from seatrial.bench.cache import PictureCache
from seatrial.bench.plan import Plan
from seatrial.bench.question import options
from seatrial.core.cell import digest, question
from seatrial.core.pipeline import Pipeline
from seatrial.core.sample import Picture, Sample
from seatrial.data.bad_sample import BadSample
from seatrial.data.decode import library_builds
from seatrial.data.load import load, placed

A = TypeVar("A")
B = TypeVar("B")


@final
@dataclass(frozen=True, eq=False)
class Loaded:
    """One batch under one pipeline: the samples that loaded with their pictures, and why the others did not."""

    samples: tuple[Sample, ...]
    pictures: tuple[Picture, ...]
    bad: Mapping[str, str]


@final
class Pictures:
    """Loads the batches of a plan on a few threads; `close`, or a `with` statement, ends the threads.

    Law: a batch depends on the plan, its number and the pipeline alone, not on the cache or the threads.
    """

    def __init__(self, plan: Plan, cache_folder: Path | None = None) -> None:
        self._plan = plan
        self._pool = ThreadPoolExecutor(plan.threads, thread_name_prefix="pictures")
        limit_bytes = int(plan.cache_gb * 1e9)
        self._cache = PictureCache(cache_folder, limit_bytes) if cache_folder and limit_bytes > 0 else None
        # The cache outlives an upgrade of the libraries that decode.
        self._builds = library_builds() if self._cache else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """Return `function` of each item, in order, computed on the threads."""
        return list(self._pool.map(function, items))

    def batch(self, number: int, pipeline: Pipeline) -> Loaded:
        """Load one batch; samples that cannot be loaded are left out and named with the reason."""
        samples = [self._plan.dataset[index] for index in self._plan.batches[number]]
        pictures, bad = self._load(number, pipeline, samples)
        pairs = [(sample, picture) for sample, picture in zip(samples, pictures, strict=True) if picture is not None]
        return Loaded(tuple(sample for sample, _ in pairs), tuple(picture for _, picture in pairs), bad)

    def same(self, first: Pipeline, second: Pipeline) -> bool:
        """Return whether every sample loads to equal pixels under both pipelines; stops at the first difference.

        False where no sample loads at all.
        """
        compared = 0
        for number in range(len(self._plan.batches)):
            one, other = self.batch(number, first), self.batch(number, second)
            if [sample.id for sample in one.samples] != [sample.id for sample in other.samples]:
                return False
            if not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one.pictures, other.pictures)):
                return False
            compared += len(one.samples)
        return compared > 0

    def _load(
        self, number: int, pipeline: Pipeline, samples: list[Sample]
    ) -> tuple[list[Picture | None], dict[str, str]]:
        encoded = all(sample.encoded is not None for sample in samples)
        cache = self._cache if encoded else None
        key = self._key(number, pipeline) if cache else ""
        kept = cache.get(key) if cache else None
        if kept is not None and len(kept[0]) == len(samples):
            found, bad = kept
            return [
                picture and replace(picture, placement=placed(pipeline, picture.source_size_px)) for picture in found
            ], bad

        def one(sample: Sample) -> Picture | str:
            try:
                return load(pipeline, sample)
            except BadSample as bad:
                return bad.reason

        found = self.map(one, samples)
        pictures = [picture if isinstance(picture, Picture) else None for picture in found]
        bad = {sample.id: why for sample, why in zip(samples, found, strict=True) if isinstance(why, str)}
        if cache:
            cache.put(key, pictures, bad)
        return pictures, bad

    def _key(self, number: int, pipeline: Pipeline) -> str:
        parts = {"data": self._plan.dataset.digest, "pipeline": options(pipeline), "builds": self._builds}
        return digest(question(**parts, batch=self._plan.batch, number=number))
