"""The tables of a search over precisions: the networks beside each other, and what each precision costs here."""

from __future__ import annotations

from collections.abc import Sequence

from seatrial.report.markup import details, escaped, table
from seatrial.report.ohq_strip import shown_precision
from seatrial.report.ohq_wording import (
    FLOAT,
    Part,
    choice,
    chosen_name,
    factor,
    float_name,
    median_ms,
    part,
    precisions,
    reach,
    saving_ms,
)
from seatrial.report.wording import ABSENT, figure, finite, metric_name, milliseconds, significant, size

MOST_OPEN = 10
"""Rows that stand open; the rest is folded away."""
NBSP = "\N{NO-BREAK SPACE}"


def _stacked(big: str, small: str) -> str:
    return escaped(big) + (f'<span class="sub">{escaped(small)}</span>' if small else "")


def _latency(holder: Part) -> str:
    low, high = (finite(part(holder, "latency_ms").get(name)) for name in ("p10", "p90"))
    spread = "" if low is None or high is None else f"{milliseconds(low)} to {milliseconds(high)}"
    return _stacked(milliseconds(median_ms(holder)), spread)


def network_table(result: Part) -> str:
    """Return the chosen network and every uniform precision as a table; the chosen one is first and set off."""
    chosen, energy = result["chosen"], part(result["energy"], "baselines")
    known = any(finite(value) is not None for value in energy.values())
    metric = str(result["metric"]) if result["metric"] is not None else None
    rows = [({**chosen, "size_bytes": result["size_bytes"], "ratio_vs_chosen": None}, f"chosen: {chosen_name(result)}")]
    rows += [(baseline, str(baseline["name"])) for baseline in result["baselines"]]
    lines = []
    for row, title in rows:
        ratio, low, high = reach(row["ratio_vs_chosen"])
        interval = "" if low is None or high is None else f"{significant(low)} to {significant(high)}"
        line = [escaped(title, 80), _latency(row), _stacked(factor(ratio), interval)]
        line.append(escaped(size(finite(row["size_bytes"]))))
        line += [escaped(figure(finite(row["value"]), metric))] if metric else []
        line.append(escaped(figure(finite(row["agreement"]), "agreement")))
        line += [escaped(milliseconds(finite(energy.get(str(row["name"])))))] if known else []
        lines.append(line)
    heads = ["precision", "latency, ms", "time over chosen", "size"]
    heads += [*([metric_name(metric)] if metric else []), "equal answers", *(["energy, mJ"] if known else [])]
    caption = (
        f"Latency: median, and 10th to 90th percentile{_how(chosen)}. Ratio: median of paired rounds, with its "
        f"95{NBSP}% interval; above 1 the chosen network is faster. Equal answers: the share of samples with the float "
        "model's answer." + (f" Energy: of one call, as {result['energy']['counter']} counts it." if known else "")
    )
    html = table(heads, lines, caption=caption, numeric=range(1, len(heads)))
    body = '<tbody role="rowgroup"><tr role="row"'
    return html.replace(f"{body}>", f'{body} class="headline">', 1)


def _how(chosen: Part) -> str:
    latency = part(chosen, "latency_ms")
    batch, threads = finite(latency.get("batch")), finite(latency.get("threads"))
    said = f", batch {batch:.0f}" if batch is not None else ""
    return said + (f", {threads:.0f} threads" if threads is not None else "")


def cost_tables(result: Part) -> str:
    """Return what each group costs in each precision: by what the choice saves, and all in execution order."""
    groups: Sequence[Part] = result["groups"]
    if not groups:
        return '<p class="quiet">The result names no operator group.</p>'
    count = len(groups)
    # What cannot be ranked comes last, equal savings by execution order.
    told = [(saving_ms(group), i) for i, group in enumerate(groups)]
    ranked = [groups[i] for _, i in sorted(told, key=lambda s: (s[0] is None, -(s[0] or 0.0), s[1]))]
    if count <= MOST_OPEN:
        caption = "Operator groups, by what their precision saves against the next best"
        return _costs(result, ranked, caption, sized=True)
    caption = f"The {MOST_OPEN} groups whose precision saves most time against the next best"
    if all(saving is None for saving, _ in told):
        caption = f"The first {MOST_OPEN} groups; what a precision saves is not known"
    first = _costs(result, ranked[:MOST_OPEN], caption, sized=False)
    every = _costs(result, groups, "All operator groups in execution order", sized=True)
    return first + details(f"All {count:,} groups in execution order", every)


def _costs(result: Part, groups: Sequence[Part], caption: str, *, sized: bool) -> str:
    names, float_in = precisions(result["groups"]), float_name(result["chosen"]["setting"])
    integers = [name for name in names if name != FLOAT]
    heads = ["group", "chosen", "share of time", *(f"{name}, ms" for name in names)]
    known = {name for group in result["groups"] for name, told in part(group, "size_bytes").items() if told is not None}
    sized_names = [name for name in names if sized and name in known]
    heads += [*(f"{name}, size" for name in sized_names), *(f"{name}, nats" for name in integers)]
    lines = []
    for group in groups:
        costs, sizes, nats = (part(group, field) for field in ("latency_ms", "size_bytes", "sensitivity"))
        name = f'<code>{escaped(group["name"], 200)}</code><span class="sub">{escaped(group["kind"], 80)}</span>'
        line = [name, escaped(shown_precision(group["precision"], float_in))]
        line.append(escaped(figure(finite(group["share"]), "agreement")))
        line += [escaped(milliseconds(finite(costs.get(precision)))) for precision in names]
        line += [escaped(size(finite(sizes.get(precision)))) for precision in sized_names]
        line += [escaped(_nats(finite(nats.get(precision)))) for precision in integers]
        lines.append(line)
    return table(heads, lines, caption=caption + ".", numeric=range(2, len(heads)))


def _nats(value: float | None) -> str:
    return ABSENT if value is None else significant(value, 2)


def edge_tables(result: Part) -> str:
    """Return what changes between precisions cost, the dearest first, and which of them the chosen network has."""
    edges: Sequence[Part] = result["edges"]
    if not edges:
        return '<p class="quiet">The model counts no cost for a change of precision.</p>'
    chosen = choice(result)
    told = [(finite(edge["latency_ms"]), i) for i, edge in enumerate(edges)]
    ranked = [edges[i] for _, i in sorted(told, key=lambda s: (s[0] is None, -(s[0] or 0.0), s[1]))]

    def listed(rows: Sequence[Part], caption: str) -> str:
        lines = []
        for edge in rows:
            one, other = (str(name) for name in edge["pair"])
            ends = chosen.get(str(edge["producer"])), chosen.get(str(edge["reader"]))
            lines.append(
                [
                    f"<code>{escaped(edge['producer'], 200)}</code>",
                    f"<code>{escaped(edge['reader'], 200)}</code>",
                    escaped(f"{one} \N{RIGHTWARDS ARROW} {other}"),
                    "yes" if ends == (one, other) else "no",
                    escaped(milliseconds(finite(edge["latency_ms"]))),
                ]
            )
        heads = ["from", "to", "change", "in the chosen network", "cost, ms"]
        return table(heads, lines, caption=caption, numeric=(4,))

    if len(edges) <= MOST_OPEN:
        return listed(ranked, "Changes of precision, the dearest first.")
    known = any(cost is not None for cost, _ in told)
    caption = f"The {MOST_OPEN} dearest changes" if known else f"The first {MOST_OPEN} changes; no cost is known"
    every = listed(ranked, "All changes of precision" + (", the dearest first." if known else "."))
    return listed(ranked[:MOST_OPEN], caption + ".") + details(f"All {len(edges):,} changes of precision", every)
