"""The color and the shape that stand for a variant in every chart of a page, and the key that explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seatrial.report.markup import escaped
from seatrial.report.subject import SIMULATION, Variant

# Okabe and Ito 2008, darkened or lightened until each has a contrast of 3 to 1 on the light and on the dark page.
COLORS = ("#1a7fc4", "#d9600f", "#0d9b72", "#c0659a", "#a8801a", "#7b74d1")
SHAPES = ("circle", "square", "diamond", "triangle-up", "hexagon")
HOLLOW = "circle-open"
"""The simulation: the outline of what is deployed."""

_DRAWN = {
    "circle": '<circle cx="8" cy="8" r="5.5" fill="{0}"/>',
    "square": '<rect x="3" y="3" width="10" height="10" fill="{0}"/>',
    "diamond": '<path d="M8 1.5 14.5 8 8 14.5 1.5 8Z" fill="{0}"/>',
    "triangle-up": '<path d="M8 2 14.5 13.5H1.5Z" fill="{0}"/>',
    "hexagon": '<path d="M8 1.5 13.6 4.75v6.5L8 14.5 2.4 11.25v-6.5Z" fill="{0}"/>',
    "circle-open": '<circle cx="8" cy="8" r="4.75" fill="none" stroke="{0}" stroke-width="2"/>',
}


@dataclass(frozen=True)
class Mark:
    """How a variant is drawn: color by its name, shape by its target."""

    color: str
    shape: str

    def marker(self, size_px: float) -> dict[str, object]:
        """Return the mark as plotly's marker; a filled one has no outline of another color."""
        return {"color": self.color, "symbol": self.shape, "size": size_px, "line": {"width": 2, "color": self.color}}

    @property
    def svg(self) -> str:
        """The mark as a small inline picture without a text of its own."""
        return f'<svg class="mark" viewBox="0 0 16 16" aria-hidden="true">{_DRAWN[self.shape].format(self.color)}</svg>'


def marks(variants: Sequence[Variant]) -> tuple[Mark, ...]:
    """Return a mark for each variant, the same for the same names and targets in the same order."""
    names = list(dict.fromkeys(v.name for v in variants))
    targets = list(dict.fromkeys(v.target for v in variants if v.target != SIMULATION))
    return tuple(
        Mark(
            COLORS[names.index(v.name) % len(COLORS)],
            HOLLOW if v.target == SIMULATION else SHAPES[targets.index(v.target) % len(SHAPES)],
        )
        for v in variants
    )


def key(variants: Sequence[Variant], drawn: Sequence[Mark]) -> str:
    """Return the key of a chart as HTML."""
    rows = "".join(f"<li>{mark.svg}{escaped(v.title, 80)}</li>" for v, mark in zip(variants, drawn))
    return f'<ul class="key" aria-label="Key">{rows}</ul>'
