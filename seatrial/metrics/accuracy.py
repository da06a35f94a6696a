"""Shares over per-sample records of classification: top-1, top-5, agreement, and accuracy under noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from seatrial.errors import BadInput
from seatrial.metrics.joining import column, joined


def share(flags: np.ndarray) -> float:
    """Return the share of true entries of `flags` [samples], a fraction; raises BadInput without a sample."""
    if not len(flags):
        raise BadInput("records without a sample", "at least one sample", "evaluate on more data")
    return int(np.count_nonzero(flags)) / len(flags)


def top1(records: pa.Table) -> float:
    """Return the share of samples answered correctly, a fraction in [0, 1]; raises BadInput without a sample."""
    return share(column(records, "correct"))


def top5(records: pa.Table) -> float:
    """Return the share of samples whose label is among the five best answers; raises BadInput without a sample."""
    return share(column(records, "in_top5"))


def agreement(first: pa.Table, second: pa.Table) -> float:
    """Return the share of equal top-1 answers among the samples that both tables hold, joined by sample id.

    Raises BadInput where they share no sample or a sample stands twice.
    """
    left, right = joined(first, second)
    return share(column(first, "answer")[left] == column(second, "answer")[right])


def survivors(clean: pa.Table, noisy: Sequence[pa.Table]) -> np.ndarray:
    """Return, for each clean-correct sample in order of id, whether it is correct in every noisy table [clean-correct].

    Raises BadInput where a clean-correct sample is missing from a noisy table.
    """
    wanted = clean.filter(pa.array(column(clean, "correct")))
    standing = np.ones(len(wanted), dtype=bool)
    for table in noisy if len(wanted) else ():
        left, right = joined(wanted, table)
        if len(left) < len(wanted):
            raise BadInput(
                f"{len(wanted) - len(left)} clean-correct samples without a noisy record",
                "the same samples in both",
                "restrict the clean records to the samples that were attacked",
            )
        standing &= column(table, "correct")[right]
    return standing


def adversarial_robustness(clean: pa.Table, attacked: pa.Table) -> float:
    """Return AR, a fraction: of the samples that are correct when clean, the share still correct under one attack.

    Raises BadInput where no sample is correct when clean. Source: RobustART (Tang et al. 2021), "AR"; `clean` holds
    the records of the same predictor on the same samples.
    """
    return share(survivors(clean, [attacked]))


def worst_case_robustness(clean: pa.Table, attacked: Sequence[pa.Table]) -> float:
    """Return WCAR, a fraction: of the samples correct when clean, the share still correct under every attack given.

    Raises BadInput where no sample is correct when clean. Source: RobustART (Tang et al. 2021), "WCAR"; give it the
    attacks of one magnitude.
    """
    return share(survivors(clean, attacked))


def robust_accuracy(clean: pa.Table, attacked: pa.Table) -> float:
    """Return plain robust accuracy, a fraction: the share of all clean samples correct both clean and attacked.

    Raises BadInput without a sample. Source: RobustBench (Croce et al. 2021): AR times the share of clean-correct.
    """
    return int(np.count_nonzero(survivors(clean, [attacked]))) / len(clean) if len(clean) else top1(clean)
