"""Seconds of processor time in which the integer program of OHQ is solved, for networks of 200 groups.

    python benchmarks/integer_program.py [--groups 200] [--precisions 5] [--instances 10]

Random tables: costs of a precision fall and sensitivities rise with its number, both scattered. Edges join a chain or
random pairs; a change of precision costs up to a share of an operator's mean latency. Sensitivity is minimized under
a latency bound halfway between the fastest and the slowest. Prints a Markdown table: median and largest seconds.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np

from seatrial.quant.integer_program import Bounds, Cost, Edge, Problem, solve


def instance(rng: np.random.Generator, groups: int, precisions: int, pairs: str, share: float) -> Problem:
    """Return one random problem; `share` is the largest edge cost over the mean latency of an operator."""
    names, levels = [f"g{i}" for i in range(groups)], [f"p{i}" for i in range(precisions)]
    size = rng.lognormal(0.0, 1.0, groups)
    costs = {}
    for name, weight in zip(names, size, strict=True):
        scatter = rng.uniform(0.7, 1.3, (2, precisions))
        costs[name] = {
            level: Cost(float(weight * scatter[0, i] / (1 + i)), float(weight * scatter[1, i] * 4.0**i * 1e-4))
            for i, level in enumerate(levels)
        }
    if pairs == "chain":
        joined = list(pairwise(names))
    else:
        drawn = rng.integers(0, groups, (2 * groups, 2))
        joined = [(names[one], names[other]) for one, other in drawn if one != other]
    largest = share * float(np.mean([cost.latency_ms for row in costs.values() for cost in row.values()]))
    edges = tuple(
        Edge(one, other, {(p, q): float(rng.uniform(0, largest)) for p in levels for q in levels if p != q})
        for one, other in dict.fromkeys(joined)
    )
    return Problem(costs, edges)


def main() -> None:
    """Print the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--precisions", type=int, default=5)
    parser.add_argument("--instances", type=int, default=10)
    options = parser.parse_args()
    print("| edges | largest edge cost | instances | median s | most s |\n|---|---|---|---|---|")
    for pairs in ("chain", "random"):
        for share in (0.05, 0.1, 0.2):
            spent = []
            for seed in range(options.instances):
                problem = instance(np.random.default_rng(seed), options.groups, options.precisions, pairs, share)
                fastest = solve(problem).latency_ms
                slowest = solve(problem, minimize="sensitivity").latency_ms
                start_s = time.process_time()
                solve(problem, Bounds(latency_ms=(fastest + slowest) / 2), minimize="sensitivity")
                spent.append(time.process_time() - start_s)
            print(
                f"| {pairs} | {share:.0%} of an operator | {len(spent)} | {np.median(spent):.2f} | {max(spent):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
