"""The variants of a trial on one target: files, what they are judged with, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seatrial.bench.plan import Subject as SweptSubject
from seatrial.catalogue import entries, find, load, make
from seatrial.core.cell import digest, question
from seatrial.core.graph import Graph
from seatrial.core.predictor import Predictor
from seatrial.core.target import Artefact, Target, Timing
from seatrial.deploy.input_adapter import foreign_artefact
from seatrial.deploy.machine import weight_bits_cap
from seatrial.deploy.stopwatch import Stopwatch
from seatrial.deploy.stopwatch import Subject as Timed
from seatrial.errors import BadInput, missing_extra
from seatrial.jobs.altered import Altered, Graphs, Planned
from seatrial.jobs.quantized import Quantized, quantize_graph
from seatrial.jobs.settings import Settings
from seatrial.models.artefact import ArtefactModel

SIMULATION = "torch"
PLAIN_INTEGERS = "w8a8"
"""The bits of a recipe that a float variant takes as its own integers."""
_AUTO = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Variant:
    """One variant on one target as files.

    `surrogate` is the `.pt2` that gives gradients for it, `parent` that of the float network it was made from;
    `planned` the recipe that makes integers of that network on this target.
    """

    name: str
    target: str
    artefact: Artefact
    surrogate: Artefact | None = None
    parent: Artefact | None = None
    planned: Planned | None = None

    @property
    def label(self) -> str:
        """`w8a8@openvino`."""
        return f"{self.name}@{self.target}"

    @property
    def digest(self) -> str:
        """The hash of the files, target and settings that its answers depend on."""
        parts = [file.read_bytes() for file in self.artefact.files]
        given = [part.path.read_bytes() if part is not None else b"" for part in (self.surrogate, self.parent)]
        plan = () if self.planned is None else self.planned.content
        return digest(self.target, question(settings=dict(self.artefact.settings)), *parts, *given, *plan)

    @property
    def source(self) -> Artefact | None:
        """The `.pt2` of the float network, None for a file that seatrial did not write."""
        return self.parent or self.surrogate


@dataclass(frozen=True)
class OpenVariants:
    """Opens variants in any process: the picklable part of a sweep.

    Graphs are kept between calls in one process, because reading a `.pt2` takes longer than many an evaluation;
    runtime sessions are opened anew, as a sweep closes them.
    """

    variants: tuple[Variant, ...]
    threads: int
    _graphs: dict[Path, Predictor] = field(default_factory=dict, compare=False, repr=False)
    _edited: Graphs = field(default_factory=Graphs, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[OpenVariants], tuple[tuple[Variant, ...], int]]:
        return OpenVariants, (self.variants, self.threads)

    def __call__(self) -> list[SweptSubject]:
        """Return the subjects of a sweep; variants with one surrogate share it, so attacks run once for them."""
        subjects = []
        for variant in self.variants:
            if variant.target == SIMULATION:
                predictor = self._graph(variant.artefact)
            else:
                predictor = make("target", variant.target).open(variant.artefact, threads=self.threads)
            surrogate = None if variant.surrogate is None else self._graph(variant.surrogate)
            about = variant.digest  # reads every file of the variant
            alter = Altered(
                variant.name,
                variant.target,
                variant.artefact,
                variant.source,
                variant.planned,
                about,
                predictor,
                self._edited,
                self.threads,
            )
            parent = None if variant.parent is None else self._graph(variant.parent)
            subjects.append(SweptSubject(variant.name, variant.target, predictor, about, surrogate, alter, parent))
        return subjects

    def _graph(self, artefact: Artefact) -> Predictor:
        if artefact.path not in self._graphs:
            self._graphs[artefact.path] = make("target", SIMULATION).open(artefact, threads=self.threads)
        return self._graphs[artefact.path]


@dataclass(frozen=True, eq=False)
class Built:
    """The variants of one target with their timings (None for the simulation), quantization and warnings."""

    target: str
    variants: tuple[Variant, ...]
    timings: dict[str, Timing] = field(default_factory=dict)
    quantized: Quantized | None = None
    warnings: tuple[str, ...] = ()


def usable_target(name: str) -> Target:
    """Return a target by name; raises BadInput where its package is not installed, with the line that installs it."""
    entry = find("target", name)
    cls = load(entry)
    if not cls.installed():
        extra = entry.needs.removeprefix("extra ")
        raise missing_extra(name, extra, f"the target '{name}'")
    return cls()


def installed_targets() -> dict[str, Target]:
    """Return the targets that `auto` chooses from and that are installed here."""
    found = {name: load(entries("target")[name]) for name in _AUTO}
    return {name: cls() for name, cls in found.items() if cls.installed()}


def build(
    graph: Graph, target: Target, batches: Any, folder: Path, settings: Settings, *, floats: bool = True
) -> Built:
    """Quantize for a target and write the files of every variant under `folder`.

    With `floats`: the float graph in torch and on the target, the narrower float type where the target has it, then
    the quantized graph as simulation and on the target.
    """
    simulation: Target = make("target", SIMULATION)
    quantized = quantize_graph(graph, batches, target.placement, settings)
    warnings = list(quantized.warnings)
    bits = settings.bits
    folder.mkdir(parents=True, exist_ok=True)
    whole = simulation.compile(graph, folder / "float-torch", bits="float32")
    quantized.recipe.save(folder / f"recipe-{bits}-{target.name}")
    planned = Planned(folder / f"recipe-{bits}-{target.name}", whole, target.name, bits)
    plain = planned if bits == PLAIN_INTEGERS else None
    rounded = simulation.compile(target.simulated(quantized.graph), folder / f"{bits}-{target.name}-torch", bits=bits)
    variants = [Variant("float", SIMULATION, whole, whole, planned=plain)]
    if target.name != SIMULATION:
        if floats:
            float_file = target.compile(graph, folder / f"float-{target.name}", bits="float32")
            variants.append(Variant("float", target.name, float_file, whole, planned=plain))
            for kind in target.precisions:
                if kind != "float32":
                    narrow = target.compile(graph, folder / f"{kind}-{target.name}", bits=kind)
                    variants.append(Variant(kind, target.name, narrow, whole))
        variants.append(Variant(bits, SIMULATION, rounded, rounded, whole, planned))
        deployed = target.compile(quantized.graph, folder / f"{bits}-{target.name}", bits=bits)
        variants.append(Variant(bits, target.name, deployed, rounded, whole, planned))
        if "simulated" in deployed.settings:
            warnings.append(f"latency on {target.name} is simulated: {deployed.settings['simulated']}")
    else:
        variants.append(Variant(bits, SIMULATION, rounded, rounded, whole, planned))
        warnings.append("the target torch simulates integers in float32: its latency is not that of integer kernels")
    return Built(target.name, tuple(variants), {}, quantized, tuple(warnings))


def float_only(graph: Graph, target: Target, folder: Path) -> Built:
    """Write the float graph for PyTorch and for a target under `folder`; nothing is quantized."""
    simulation: Target = make("target", SIMULATION)
    folder.mkdir(parents=True, exist_ok=True)
    whole = simulation.compile(graph, folder / "float-torch", bits="float32")
    variants = [Variant("float", SIMULATION, whole, whole)]
    if target.name != SIMULATION:
        deployed = target.compile(graph, folder / f"float-{target.name}", bits="float32")
        variants.append(Variant("float", target.name, deployed, whole))
    return Built(target.name, tuple(variants))


def wanted_targets(settings: Settings) -> list[str]:
    """Return the targets that a float network is deployed on; `auto` is ONNX Runtime alone."""
    return ["onnxruntime"] if settings.target == "auto" else settings.target.split(",")


def build_for_targets(
    graph: Graph,
    batches: Callable[[], Any],
    folder: Path,
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[tuple[Variant, ...], list[str]]:
    """Return the variants on every target asked for, with warnings; a simulation stands once, for the first target.

    `batches` loads the calibration samples, unless `settings.bits` is "float". Raises as `build` does.
    """
    found: dict[str, Variant] = {}
    warnings: list[str] = []
    loaded = None if settings.bits == "float" else batches()
    for name in wanted_targets(settings):
        target = usable_target(name)
        if progress is not None:
            progress(0, 0, f"building for {name}")
        built = float_only(graph, target, folder) if loaded is None else build(graph, target, loaded, folder, settings)
        for variant in built.variants:
            found.setdefault(variant.label, variant)
        warnings += built.warnings
    return tuple(found.values()), warnings


def artefact_targets(model: ArtefactModel, wanted: str) -> list[str]:
    """Return the runtimes that try a deployed file: of `wanted` (names with commas) those for its format, or every
    installed one (`auto`).

    Raises BadInput where no runtime is left, and where one that was named is not installed.
    """
    names = ("onnxruntime", "openvino") if model.format == "onnx" else ("litert", "openvino")
    if wanted == "auto":
        found = [name for name in names if load(entries("target")[name]).installed()]
        install = f"run: pip install 'seatrial[{names[-1]}]'"
        if not found:
            raise BadInput(f"no runtime for {model.path.name}", f"one of {', '.join(names)}", install)
        return found
    found = [name for name in wanted.split(",") if name in names]
    if not found:
        raise BadInput(f"--target {wanted} for {model.path.name}", f"one of {', '.join(names)}", "name one, or auto")
    for name in found:
        usable_target(name)
    return found


def build_artefact(model: ArtefactModel, wanted: str) -> Built:
    """Return the one variant of a deployed file on each of its `artefact_targets`."""
    found = artefact_targets(model, wanted)
    artefact = foreign_artefact(model)
    variants = tuple(Variant("deployed", name, artefact) for name in found)
    limit = 2 ** (weight_bits_cap() - 1)
    warnings = tuple(
        f"8-bit weights on {name}: its kernels saturate on this CPU where two products exceed 16 bits; "
        "a CPU with VNNI may answer otherwise"
        for name in found
        if name in _AUTO and model.widest_weight > limit
    )
    return Built("auto" if len(found) > 1 else found[0], variants, warnings=warnings)


def time_variants(variants: Sequence[Variant], threads: int) -> dict[str, Timing]:
    """Return what the stopwatch saw of each deployed variant, alternated; the torch simulation is not timed.

    A chip that is modeled (its artefacts say what is `simulated`) tells its own time.
    """
    modeled = [v for v in variants if "simulated" in v.artefact.settings]
    timed = [v for v in variants if v not in modeled and (v.target != SIMULATION or v.name == "float")]
    seen = Stopwatch().measure([Timed(v.target, v.artefact) for v in timed], threads=threads, batches=(1, 8))
    told = [make("target", v.target).time([v.artefact], threads=threads, batches=(1, 8))[0] for v in modeled]
    return {variant.label: timing for variant, timing in zip([*timed, *modeled], [*seen, *told], strict=True)}


def fastest(built: dict[str, Built], timings: dict[str, Timing], bits: str) -> str:
    """Return the target whose quantized model answers soonest at batch 1."""
    return min(built, key=lambda name: timings[f"{bits}@{name}"].latency[0].median)
