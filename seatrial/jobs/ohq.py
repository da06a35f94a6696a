"""Quantize one model by OHQ: the fastest accurate precision of each operator on this very chip."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seatrial.bench.store import Store
from seatrial.catalogue import make
from seatrial.core.graph import Graph
from seatrial.core.target import Target
from seatrial.deploy.openvino import save_ir
from seatrial.errors import BadInput
from seatrial.jobs.before_after import channel_range_data
from seatrial.jobs.chip_search import Candidate, ChipSearch, Searched, Uniform
from seatrial.jobs.deployable import write_deployable
from seatrial.jobs.measured import Cells, Metric
from seatrial.jobs.ohq_result import Judged, broken_bound, ohq_data, write_tables
from seatrial.jobs.planned import ask, plans
from seatrial.jobs.quantized import quantizer_of
from seatrial.jobs.result import write_text
from seatrial.jobs.search_settings import SearchSettings
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject, open_subject
from seatrial.jobs.variants import SIMULATION, OpenVariants, Variant, installed_targets, usable_target
from seatrial.models.opened import Model
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.report.ohq_page import write_ohq

OHQ = "ohq"
_MODELED_DROP = 0.01
"""The bound on accuracy where a modeled chip runs 2 bits and the user states none."""


def quantize_ohq(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any] | None = None,
    *,
    out: str | Path = "quantized",
    metric: Metric | None = None,
    settings: Settings | None = None,
    wishes: SearchSettings | None = None,
    overrides: dict[str, Any] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search the precision of each operator on `settings.target` and write what `quantize` writes, and the search.

    `wishes.quantizer` plans grids and migrations; options are fields of `Settings` (but `method`) and `SearchSettings`.
    Under `out`: the model with preprocessing, labels and script, `recipe.json`, `latency.parquet`, `search.html`, and
    in `models` every measurement (`measurements.jsonl`). Returns the JSON of `seatrial quantize --method ohq`
    (docs/json.md). The model itself is left as it was.

    Raises BadInput for deployed files, unknown names, data that cannot be used and bounds that nothing meets (the
    fastest, or smallest, that was reached is named, and its files stay); KeyboardInterrupt after the best so far was
    saved.
    """
    start_s = time.monotonic()
    own = {field.name for field in fields(SearchSettings)}
    wishes = replace(wishes or SearchSettings(), **{name: options.pop(name) for name in own & set(options)})
    settings = _with_quantizer(replace(settings or Settings(), **{"noise": "none", **options}), wishes.quantizer)
    subject = open_subject(model, data, settings, overrides=overrides, progress=progress)
    if not isinstance(subject.model, Model):
        raise BadInput(f"the deployed file '{subject.model.name}'", "a network to quantize", "pass the float original")
    folder = Path(out).resolve()
    graph, batches = fold_batch_norm(subject.model.graph), subject.calibration_batches()

    def tell(text: str) -> None:
        if progress is not None:
            progress(0, 0, text)

    if settings.target == "systolic" and wishes.max_drop is None:
        wishes = replace(wishes, max_drop=_MODELED_DROP)
        note = f"--max-drop {_MODELED_DROP:.0%} holds where none is stated: the modeled chip runs 2 bits"
        subject = replace(subject, warnings=(*subject.warnings, note))
    search, uniform = _on_best_target(graph, batches, folder, settings, wishes, tell)
    searched = search.run(graph, batches, folder / "models", uniform, start_s)
    chosen = _Choosing(subject, graph, batches, folder, settings, metric, search, searched, progress)
    candidates, judged = chosen.run(wishes)
    tell("measuring the choice against the uniform precisions")
    rounds_ms = search.alternated(candidates, rounds=8 if searched.interrupted else 40)
    result = ohq_data(subject, settings, wishes, search, searched, candidates, judged, rounds_ms)
    winner = candidates[result.index]
    files = _written(folder, winner, search.target.name, subject)
    if winner.recipe is not None:
        files += winner.recipe.save(folder / "recipe")
    files += write_tables(folder, searched)
    page = folder / "search.html"
    found = {
        **result.data,
        "channel_ranges": [] if winner.recipe is None else channel_range_data(graph, winner.recipe, batches),
        "files": [str(file) for file in files],
        "report": str(page),
        "seconds": time.monotonic() - start_s,
    }
    write_ohq(found, page)
    write_text(folder / "quantize.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    if searched.interrupted:
        raise KeyboardInterrupt
    broken = broken_bound(found, wishes)
    if broken is not None:
        raise broken
    return json.loads(json.dumps(found))


def _with_quantizer(settings: Settings, quantizer: str) -> Settings:
    """Return settings whose method is the quantizer; raises BadInput for what a search would leave aside."""
    usual = Settings()
    if settings.method not in (usual.method, quantizer):
        came = f"the method '{settings.method}' in the settings of a search"
        raise BadInput(came, "a quantizer among the options of the search", f"pass quantizer='{settings.method}'")
    for name in ("weights_per", "activations_per"):
        if getattr(settings, name) != getattr(usual, name):
            came = f"--{name.replace('_', '-')} {getattr(settings, name)} with --method {OHQ}"
            raise BadInput(came, "scales of channels and tensors, which integer kernels read", "leave it out")
    return replace(settings, method=quantizer)


def _written(folder: Path, winner: Candidate, target: str, subject: Subject) -> list[Path]:
    """Write what runs without seatrial; of a modeled chip the network that answers for it."""
    if winner.artefact.format != "onnx":
        return [Path(shutil.copy2(file, folder / f"model{file.suffix}")) for file in winner.artefact.files]
    files = write_deployable(folder, winner.artefact, target, subject)
    return [*files, *save_ir(folder / "model.onnx")] if target == "openvino" else files


def _on_best_target(
    graph: Graph,
    batches: list[Tensor],
    folder: Path,
    settings: Settings,
    wishes: SearchSettings,
    tell: Callable[[str], None],
) -> tuple[ChipSearch, Uniform]:
    """Return the search on the target that was asked for, or on the one with the fastest uniform network."""
    asked = settings.target
    targets: dict[str, Target] = installed_targets() if asked == "auto" else {asked: usable_target(asked)}
    if asked in (SIMULATION, "litert"):
        raise BadInput(f"--target {asked} with --method ohq", "a runtime that is measured", "take auto, or see --help")
    tried = []
    for target in targets.values():
        search = ChipSearch(
            target, quantizer_of(settings), wishes, settings.used_threads, settings.seed, settings.keep, tell
        )
        tried.append((search, search.uniform(graph, batches, folder / "models")))
    return min(tried, key=lambda pair: min(pair[1].medians_ms.values()))


@dataclass(frozen=True, eq=False)
class _Choosing:
    """Plans and evaluates finalists until the fastest that keeps the accuracy asked for is known."""

    subject: Subject
    graph: Graph
    batches: list[Tensor]
    folder: Path
    settings: Settings
    metric: Metric | None
    search: ChipSearch
    searched: Searched
    progress: Callable[[int, int, str], None] | None

    def run(self, wishes: SearchSettings) -> tuple[list[Candidate], Judged]:
        """Return the uniform networks and, as the last one, the choice; with what all of them answered.

        Finalists are in order of latency, and slower ones lose less: halving finds the fastest that keeps the bound.
        """
        uniform = list(self.searched.uniform.candidates)
        variants = [self._written("float", self.graph, "float32"), *self._variants(uniform)]
        count = len(self.searched.finalists)
        if not count:
            return uniform, self._judged(variants)
        if wishes.max_drop is None or self.searched.interrupted:
            return self._tried(0, variants)
        low, high, best = 0, count - 1, None
        number = 0  # the fastest first: it is the answer more often than not
        while low <= high:
            tried = self._tried(number, variants)
            if tried[1].drop("ohq") <= wishes.max_drop:
                best, high = tried, number - 1
            else:
                low = number + 1
            number = (low + high) // 2
        return best or (uniform, self._judged(variants))

    def _tried(self, number: int, variants: list[Variant]) -> tuple[list[Candidate], Judged]:
        models = self.folder / "models"
        candidate = self.search.deliver(self.graph, self.batches, number, self.searched, models)
        judged = self._judged([*variants, *self._variants([candidate])])
        return [*self.searched.uniform.candidates, candidate], judged

    def _variants(self, candidates: list[Candidate]) -> list[Variant]:
        """Return the deployed files, and the simulations of the choice and of plain uniform integers."""
        target = self.search.target.name
        found: list[Variant] = []
        for one in candidates:
            found.append(Variant(one.name, target, one.artefact))
            if one.graph is not None and one.name in ("ohq", "w8a8"):
                simulated = self.search.in_setting(one.setting).simulated(one.graph)
                found.append(self._written(one.name, simulated, "mixed"))
        return found

    def _written(self, name: str, graph: Graph, bits: str) -> Variant:
        simulation: Target = make("target", SIMULATION)
        path = self.folder / "models" / f"{name}-{self.search.target.name}-torch"
        return Variant(name, SIMULATION, simulation.compile(graph, path, bits=bits))

    def _judged(self, variants: list[Variant]) -> Judged:
        store = Store(self.folder / "store")
        plan, _ = plans(self.subject, self.settings, True)
        ask(OpenVariants(tuple(variants), self.settings.used_threads), plan, store, self.settings, self.progress)
        return Judged(Cells.of(store, plan, variants), self.search.target.name, self.metric)
