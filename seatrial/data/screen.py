"""Find the samples that cannot be loaded, before anything is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

from seatrial.core.pipeline import Pipeline
from seatrial.data.bad_sample import BadSample
from seatrial.data.draw import D
from seatrial.data.load import load
from seatrial.errors import BadInput


def screen(
    dataset: D,
    pipeline: Pipeline,
    *,
    max_bad: float = 0.01,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[D, list[tuple[str, str]]]:
    """Load every sample once and return the data set without the bad ones, and (id, reason) of each of those.

    Samples already known as bad (`dataset.bad`) are listed and counted too. `progress` is called with (done, total).
    Raises BadInput where the share of bad samples is above `max_bad` (a fraction), naming the first, and where no
    sample is left.
    """
    total = len(dataset)
    found: list[tuple[str, str]] = []

    def reason(index: int) -> str | None:
        try:
            load(pipeline, dataset[index])
        except BadSample as bad:
            return bad.reason
        return None

    # Few threads: a picture of 100 megapixels takes about a gigabyte while it is decoded.
    with ThreadPoolExecutor(workers or min(4, cpu_count() or 1)) as pool:
        for done, why in enumerate(pool.map(reason, range(total)), start=1):
            if why is not None:
                found.append((dataset.ids[done - 1], why))
            if progress is not None:
                progress(done, total)
    bad = sorted((*dataset.bad, *found))
    of = total + len(dataset.bad)
    if len(bad) > max_bad * of:
        first, why = bad[0]
        raise BadInput(
            f"{len(bad)} of {of} samples cannot be used, first '{first}': {why}",
            f"at most {max_bad:.3g} of them (--max-bad)",
            "mend or remove those files, or raise --max-bad",
        )
    good = dataset.without(name for name, _ in found)
    if len(good) == 0:
        raise BadInput(f"none of {of} samples can be used", "at least one", "check the files and the decoder")
    return good, bad
