"""Energy counters of a machine: what they count, or that there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyCounter:
    """Running Average Power Limit counters of the processor packages: microjoules that wrap at `ranges_uj`.

    They count the whole machine: what else runs is counted too.
    """

    files: tuple[Path, ...]
    ranges_uj: tuple[int, ...]
    name: str = "rapl"

    def read_uj(self) -> tuple[int, ...]:
        """Return the state of each counter."""
        return tuple(int(file.read_text(encoding="ascii")) for file in self.files)

    def between_mj(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Return the millijoules between two states, no more than one wrap apart."""
        spent = ((new - old) % (limit + 1) for old, new, limit in zip(before, after, self.ranges_uj, strict=True))
        return sum(spent) / 1000


def energy_counter(folder: Path = _POWERCAP) -> EnergyCounter | None:
    """Return the package counters that this process may read, None where the machine has none.

    Source: Linux kernel, Documentation/power/powercap (`energy_uj`, `max_energy_range_uj`).
    """
    files, ranges = [], []
    for zone in sorted(folder.glob("*rapl:[0-9]")):  # intel-rapl:0; its parts intel-rapl:0:0 are counted in it
        try:
            int((zone / "energy_uj").read_text(encoding="ascii"))
            ranges.append(int((zone / "max_energy_range_uj").read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # hidden from users since CVE-2020-8694: then there is no counter for us
        files.append(zone / "energy_uj")
    return EnergyCounter(tuple(files), tuple(ranges)) if files else None
