"""The tables of the study of RobustMQ's findings, from the CSV files that `robustmq_cifar.py` wrote.

    python benchmarks/robustmq_tables.py [--data docs/studies/data] [--network resnet20]

Shares are of the samples that a network has right when clean, but for accuracy; where a method was trained with several
seeds its figure is their mean, with the smallest and the largest in brackets. Needs no other data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from csv_table import print_table

FLOAT, NEAREST = ("tuned", "float"), ("nearest", "8")
ORDER = (("checkpoint", "float"), FLOAT, NEAREST, *((m, b) for m in ("dorefa", "pact", "lsq") for b in "842"))
MAGNITUDES = (("0.5/255", "small"), ("2/255", "middle"), ("8/255", "large"))
CLIMBING = ("fgsm", "pgd", "mim")


def figure(values: pd.Series, scale: float = 100.0, digits: int = 1) -> str:
    """Return the mean over seeds, and the range where there are several."""
    numbers = scale * values.astype(float)
    text = f"{numbers.mean():.{digits}f}"
    return text if len(numbers) < 2 else f"{text} ({numbers.min():.{digits}f} to {numbers.max():.{digits}f})"


def by_network(rows: pd.DataFrame, cells: Callable[[pd.DataFrame], list[str]]) -> list[list[str]]:
    """Return a line for each method and width."""
    found = []
    for method, bits in ORDER:
        mine = rows[(rows["method"] == method) & (rows["bits"] == bits)]
        if len(mine):
            found.append([method, bits, *cells(mine)])
    return found


def noises(rows: pd.DataFrame, *texts: str) -> pd.DataFrame:
    return rows[rows["noise"].isin(texts)]


def print_summary(summary: pd.DataFrame, system: pd.DataFrame) -> None:
    steady = system[system["status"].isin(["done", "no-noise"])].copy()
    steady["churn"] = steady["churn"].fillna(0.0)
    means = steady.groupby("variant")[["value", "churn"]].mean()

    def cells(mine: pd.DataFrame) -> list[str]:
        names = list(mine["variant"])
        return [
            *(figure(mine[name]) for name in ("clean", "NR")),
            figure(mine["mCE"], 1.0),
            figure(means.loc[names, "value"]),
            figure(means.loc[names, "churn"], digits=2),
        ]

    heads = ("method", "bits", "clean, %", "NR, %", "mCE, %", "mean over system noise, %", "mean churn, %")
    print_table(heads, by_network(summary, cells))


def print_gradients(attacks: pd.DataFrame) -> None:
    """What white-box attacks alone say: the share that stands."""
    names = [(attack, size) for attack in CLIMBING for size, _ in MAGNITUDES]

    def cells(mine: pd.DataFrame) -> list[str]:
        found = [figure(noises(mine, f"{attack}:linf:{size}")["AR"]) for attack, size in names]
        return [*found, figure(noises(mine, "pgd:l2:2@224")["AR"])]

    heads = [f"{attack.upper()} {size}" for attack, size in names]
    print_table(("method", "bits", *heads, "PGD L2 2@224"), by_network(attacks, cells))


def print_checks(attacks: pd.DataFrame, summary: pd.DataFrame, masking: pd.DataFrame) -> None:
    """The same with attackers that no masking deceives."""

    def cells(mine: pd.DataFrame) -> list[str]:
        variants = set(mine["variant"])
        found = []
        for size, name in MAGNITUDES:
            for text in (f"pgd:linf:{size}", f"pgd:linf:{size}:from-float", f"square:linf:{size}"):
                left = noises(mine, text)["AR"].dropna()  # the float network has no parent
                found.append(figure(left) if len(left) else "-")
            found.append(figure(summary[summary["variant"].isin(variants)][f"WCAR_{name}"]))
        return [
            *found,
            figure(noises(mine, "pgd:linf:2/255")["zero_gradient"]),
            str(int(masking["variant"].isin(variants).sum())),
        ]

    heads = [head for size, _ in MAGNITUDES for head in (f"PGD {size}", "from float", "Square", "all")]
    lines = by_network(attacks[attacks["method"] != "checkpoint"], cells)
    print_table(("method", "bits", *heads, "zero gradients, %", "flags"), lines)


def by_width(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the float network, and those of all trained networks of each width."""
    trained = rows[rows["method"] != NEAREST[0]]
    return {"float": rows[rows["method"] == FLOAT[0]]} | {f"{b} bits": trained[trained["bits"] == b] for b in "842"}


def print_corruptions(rows: pd.DataFrame, summary: pd.DataFrame) -> None:
    """By how much each corruption lowers accuracy, relative to clean, over severities."""
    done = rows[rows["status"] == "done"]
    done = done.assign(loss=1 - done["value"] / done["variant"].map(summary.set_index("variant")["clean"]))
    means = {name: mine.groupby("name")["loss"].mean() for name, mine in by_width(done).items()}
    order = pd.concat(means, axis=1).mean(axis=1).sort_values(ascending=False).index
    print_table(
        ("corruption", *(f"{name}, %" for name in means)),
        [[str(name), *(f"{100 * column[name]:.1f}" for column in means.values())] for name in order],
    )


def print_system(rows: pd.DataFrame) -> None:
    """Which share of answers each system noise changes."""
    lines = []
    for noise, mine in rows.groupby("noise", sort=False):
        means = [part["churn"].mean() for part in by_width(mine[mine["status"] == "done"]).values()]
        states = ", ".join(sorted(set(mine["status"])))
        lines.append([str(noise), states, *("-" if pd.isna(mean) else f"{100 * mean:.2f}" for mean in means)])
    print_table(("noise", "status", *(f"churn, {name}, %" for name in by_width(rows))), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "docs" / "studies" / "data")
    parser.add_argument("--network", default="resnet20")
    given = parser.parse_args()
    tracks = {}
    for track in ("summary", "attacks", "corruptions", "system", "masking"):
        file = given.data / f"robustmq_{given.network}_{track}.csv"
        tracks[track] = pd.read_csv(file, dtype={"bits": str}) if file.exists() else pd.DataFrame({"variant": []})
    print_summary(tracks["summary"], tracks["system"])
    print_gradients(tracks["attacks"])
    print_checks(tracks["attacks"], tracks["summary"], tracks["masking"])
    print_corruptions(tracks["corruptions"], tracks["summary"])
    print_system(tracks["system"])


if __name__ == "__main__":
    main()
