"""A network as a strip: a bar for each operator group in execution order, colored by its precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from seatrial.report.markup import escaped
from seatrial.report.ohq_wording import Part, part, precisions
from seatrial.report.wording import ABSENT, figure, finite, milliseconds, significant, size

HEIGHT_PX, LEAST_PX = 76, 3
MOST_IN_BLOCK = 16
"""Groups from which on a block is split by the next number in its names."""
MOST_NAMED = 8

STYLE = """
.strip { display: flex; flex-wrap: wrap; gap: 0.7rem; align-items: flex-end; margin: 0.8rem 0 0.4rem; }
.strip .block { min-width: 0; max-width: 100%; break-inside: avoid; }
.strip .bars {
  display: flex; flex-wrap: wrap; row-gap: 0.5rem; border-bottom: 1px solid var(--zero); min-height: 24px;
}
.strip .block > small { display: block; font-size: 0.75rem; line-height: 1.5; color: var(--ink-3); min-height: 1.5em; }
.strip .op { display: flex; align-items: flex-end; width: 14px; padding: 0 1px; }
.strip .op b { width: 100%; border-radius: 2px 2px 0 0; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.strip .op:hover { background: var(--soft); }
.tip {
  position: fixed; left: 0; top: 0; z-index: 9; max-width: min(24rem, 92vw); padding: 0.45rem 0.65rem;
  background: var(--card); color: var(--ink); border: 1px solid var(--line); border-radius: 6px; font-size: 0.8125rem;
  line-height: 1.45; white-space: pre-line; overflow-wrap: anywhere; pointer-events: none;
  box-shadow: 0 2px 10px rgba(0, 0, 0, 0.18);
}
@media print { .tip { display: none; } }
"""

SCRIPT = """(() => {
  "use strict";
  const tip = document.getElementById("strip-tip");
  const hide = () => { tip.hidden = true; };
  for (const strip of document.querySelectorAll(".strip")) {
    strip.addEventListener("pointerover", (event) => {
      const bar = event.target.closest("[data-tip]");
      if (!bar) return hide();
      tip.textContent = bar.dataset.tip;
      tip.hidden = false;
      const place = bar.getBoundingClientRect();
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      const above = place.top - tip.offsetHeight - 6;
      tip.style.left = Math.max(8, Math.min(place.left - 12, room)) + "px";
      tip.style.top = (above > 0 ? above : place.bottom + 6) + "px";
    });
    strip.addEventListener("pointerleave", hide);
  }
  window.addEventListener("scroll", hide, { passive: true });
})();"""
"""Shows what a bar stands for, as text, beside it and inside the window."""


def strip(groups: Sequence[Part], colors: Mapping[str, str], float_in: str) -> tuple[str, list[str]]:
    """Return the strip as HTML and the scripts it needs; `groups` are in execution order.

    Heights are shares of operator time, equal where no group has one. `float_in` is what float operators run in.
    """
    if not groups:
        return '<p class="quiet">The result names no operator group.</p>', []
    shares = [finite(group["share"]) for group in groups]
    most = max((share for share in shares if share is not None), default=0.0)
    drawn: list[str] = []
    for group, share in zip(groups, shares):
        color = colors[str(group["precision"])]
        height = HEIGHT_PX if most <= 0 else max(LEAST_PX, round(HEIGHT_PX * max(0.0, share or 0.0) / most))
        drawn.append(
            f'<span class="op" data-tip="{escaped(_told(group, float_in))}">'
            f'<b style="height:{height}px;background:{color}"></b></span>'
        )
    html, at = [], 0
    for label, count in blocks([str(group["name"]) for group in groups]):
        bars = "".join(drawn[at : at + count])
        html.append(f'<div class="block"><div class="bars">{bars}</div><small>{escaped(label, 24)}</small></div>')
        at += count
    about = _summary(groups, colors)
    tip = '<div class="tip" id="strip-tip" role="tooltip" hidden></div>'
    return (
        f'<style>{STYLE}</style>{_key(groups, colors, float_in)}<div class="strip" role="img" '
        f'aria-label="{escaped(about)}">{"".join(html)}</div>{tip}',
        [SCRIPT],
    )


def blocks(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return (label, number of groups) of consecutive groups of one block.

    A block is what names share up to their first number (`blocks.0`), up to the next one where that is too long;
    neighbors of which each would be alone stand together without a label.
    """
    found = _runs(names, 0)
    merged: list[tuple[str, int]] = []
    for alone, run in groupby(found, key=lambda block: block[1] == 1):
        held = list(run)
        merged += [("", len(held))] if alone and len(held) >= 3 else held
    return [(".".join(label.split(".")[-2:]), count) for label, count in merged]


def _runs(names: Sequence[str], depth: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for label, run in groupby(names, key=lambda name: _label(name, depth)):
        held = list(run)
        if len(held) > MOST_IN_BLOCK and len({_label(name, depth + 1) for name in held}) > 1:
            found += _runs(held, depth + 1)
        else:
            found.append((label, len(held)))
    return found


def _label(name: str, depth: int) -> str:
    parts = name.split("/")[0].split(".")
    numbers = [i for i, text in enumerate(parts) if text.isdigit()]
    if not numbers:
        return parts[0]
    return ".".join(parts[: numbers[min(depth, len(numbers) - 1)] + 1])


def shown_precision(precision: object, float_in: str) -> str:
    """Return a precision with what float stands for: `float (bf16)`."""
    return f"float ({float_in})" if precision == "float" and float_in != "float" else str(precision)


def _told(group: Part, float_in: str) -> str:
    operators = [str(name) for name in group["operators"]]
    lines = [str(group["name"]), f"{group['kind']}, in {shown_precision(group['precision'], float_in)}"]
    if finite(group["share"]) is not None:
        lines.append(f"{figure(finite(group['share']), 'agreement')} of the operators' time")
    for precision in precisions([group]):
        cost = part(group, "latency_ms").get(precision)
        told = f"{precision}: {milliseconds(finite(cost))} ms" if finite(cost) is not None else f"{precision}: {ABSENT}"
        held = finite(part(group, "size_bytes").get(precision))
        nats = finite(part(group, "sensitivity").get(precision))
        told += f", {size(held)}" if held is not None else ""
        lines.append(told + (f", {significant(nats)} nats" if nats is not None else ""))
    if len(operators) > 1:
        more = f" and {len(operators) - MOST_NAMED} more" if len(operators) > MOST_NAMED else ""
        lines.append(f"with {', '.join(operators[:MOST_NAMED])}{more}")
    return "\n".join(lines)


def _counts(groups: Sequence[Part], colors: Mapping[str, str]) -> dict[str, int]:
    return {name: sum(str(group["precision"]) == name for group in groups) for name in colors}


def _summary(groups: Sequence[Part], colors: Mapping[str, str]) -> str:
    counts = ", ".join(f"{count} in {name}" for name, count in _counts(groups, colors).items() if count)
    return f"The network's {len(groups)} operator groups in execution order: {counts}. The table below has them all."


def _key(groups: Sequence[Part], colors: Mapping[str, str], float_in: str) -> str:
    rows = "".join(
        f'<li><svg class="mark" viewBox="0 0 16 16" aria-hidden="true"><rect x="2" y="2" width="12" height="12" '
        f'rx="2" fill="{colors[name]}"/></svg>{escaped(shown_precision(name, float_in), 80)}: '
        f"{count} {'group' if count == 1 else 'groups'}</li>"
        for name, count in _counts(groups, colors).items()
        if count
    )
    return f'<ul class="key" aria-label="Key">{rows}</ul>'
