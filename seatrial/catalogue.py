"""The one page that names every concrete method: name -> "module:Class"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from seatrial.core.noise import NoiseSpec
from seatrial.errors import BadInput, unknown_name


@dataclass(frozen=True)
class Entry:
    """One method: `needs` says what it takes from a model (`gradients`, `logits`, `graph`) or which extra to install.

    `choices` are what stands behind the name in `--noise full`: severities of corruptions, options of system noises,
    `NORM:EPSILON` of attacks; `quick` those of `--noise quick`.
    """

    family: str
    name: str
    path: str
    paper: str
    needs: str = ""
    choices: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


_SEVERITIES = ("1", "2", "3", "4", "5")
_LINF = ("linf:0.5/255", "linf:2/255", "linf:8/255")
_SYSNOISE = "SysNoise, Wang et al. 2023"
_RESIZES = (
    *(f"pillow-{name}" for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")),
    *(f"opencv-{name}" for name in ("nearest", "bilinear", "area", "bicubic", "lanczos")),
)


def _attack(
    name: str, method: str, paper: str, needs: str, choices: tuple[str, ...] = _LINF, quick: tuple[str, ...] = ()
) -> Entry:
    return Entry("attack", name, f"seatrial.noise.{method}", paper, needs, choices, quick)


def _corruption(name: str, quick: tuple[str, ...] = ()) -> Entry:
    method = "".join(part.capitalize() for part in name.split("_"))
    paper = "Hendrycks and Dietterich 2019"
    return Entry("corruption", name, f"seatrial.noise.{name}:{method}", paper, "", _SEVERITIES, quick)


def _system(name: str, method: str, needs: str, choices: tuple[str, ...], quick: tuple[str, ...] = ()) -> Entry:
    return Entry("system", name, f"seatrial.noise.{method}", _SYSNOISE, needs, choices, quick)


ENTRIES: tuple[Entry, ...] = (
    _attack("fgsm", "fgsm:FGSM", "Goodfellow et al. 2015", "gradients", quick=("linf:2/255",)),
    _attack("pgd", "pgd:PGD", "Madry et al. 2018", "gradients", quick=("linf:2/255",)),
    _attack("square", "square:Square", "Andriushchenko et al. 2020", "logits"),
    _corruption("gaussian_noise", quick=("3",)),
    _corruption("motion_blur", quick=("3",)),
    _corruption("brightness", quick=("3",)),
    _corruption("jpeg_compression", quick=("3",)),
    _system(
        "resize",
        "resize_noise:ResizeNoise",
        "encoded pictures that are resized",
        _RESIZES,
        ("opencv-bilinear", "opencv-area", "pillow-bicubic"),
    ),
    _system(
        "decoder",
        "decoder_noise:DecoderNoise",
        "encoded pictures",
        ("pillow", "opencv", "pyav"),
        ("pillow", "opencv", "pyav"),
    ),
    _system(
        "precision",
        "precision_noise:PrecisionNoise",
        "a graph, or a runtime with that arithmetic",
        ("fp16", "bf16"),
        ("fp16", "bf16"),
    ),
    Entry("quantizer", "nearest", "seatrial.quant.nearest:Nearest", "Jacob et al. 2018; Nagel et al. 2019", "graph"),
    Entry("ranges", "minmax", "seatrial.numerics.ranges:MinMax", "Jacob et al. 2018"),
    Entry("ranges", "percentile", "seatrial.numerics.ranges:Percentile", "Wu et al. 2020"),
    Entry("ranges", "mse", "seatrial.numerics.ranges:MeanSquaredError", "Choukroun et al. 2019"),
    Entry("ranges", "moving-average", "seatrial.numerics.ranges:MovingAverage", "Jacob et al. 2018"),
    Entry("target", "torch", "seatrial.deploy.torch_target:Torch", "PyTorch", "installed"),
    Entry("target", "onnxruntime", "seatrial.deploy.onnxruntime:OnnxRuntime", "ONNX Runtime", "installed"),
    Entry("target", "openvino", "seatrial.deploy.openvino:OpenVino", "OpenVINO", "extra openvino"),
    Entry("target", "litert", "seatrial.deploy.litert:LiteRt", "LiteRT", "extra litert"),
)

QUICK_QUERIES = 300

NOISE_FAMILIES = ("attack", "corruption", "system")


def entries(family: str) -> dict[str, Entry]:
    """Return the methods of one family by name."""
    return {entry.name: entry for entry in ENTRIES if entry.family == family}


def find(family: str, name: str) -> Entry:
    """Return one method; raises BadInput for an unknown name, with the nearest match."""
    known = entries(family)
    if name not in known:
        raise unknown_name(family, name, known)
    return known[name]


def load(entry: Entry) -> Any:
    """Import and return the class of a method."""
    module, _, name = entry.path.partition(":")
    return getattr(import_module(module), name)


def make(family: str, name: str, **options: Any) -> Any:
    """Return a method built with its options; raises BadInput for an unknown name."""
    return load(find(family, name))(**options)


NoiseMaker = partial[Any]


def noise_plan(noise: str | Iterable[str], *, gradients: bool) -> tuple[tuple[NoiseSpec, NoiseMaker], ...]:
    """Return the rows of a preset (`none`, `quick`, `full`) or of a list of texts, each with what makes the noise.

    Texts are `attack:linf:EPSILON[:QUERIES]`, `corruption:SEVERITY` and `system:OPTION`. Without `gradients` the quick
    preset adds Square with 300 queries. Raises BadInput for unknown names and options.
    """
    if isinstance(noise, str):
        if noise == "none":
            return ()
        if noise not in ("quick", "full"):
            return tuple(parse_noise(text) for text in noise.split(","))
        return tuple(_preset(noise, gradients=gradients))
    return tuple(parse_noise(text) for text in noise)


def _preset(name: str, *, gradients: bool) -> Iterable[tuple[NoiseSpec, NoiseMaker]]:
    for family in NOISE_FAMILIES:
        for entry in entries(family).values():
            chosen = entry.choices if name == "full" else entry.quick
            queries = ""
            if entry.name == "square" and name == "quick":
                chosen = () if gradients else ("linf:2/255",)
                queries = f":{QUICK_QUERIES}"
            for choice in chosen:
                yield parse_noise(f"{entry.name}:{choice}{queries}")


def parse_noise(text: str) -> tuple[NoiseSpec, NoiseMaker]:
    """Read one noise, such as `pgd:linf:2/255`, `gaussian_noise:3` or `resize:opencv-bilinear`."""
    name, *parts = text.strip().split(":")
    known = {entry.name: entry for entry in ENTRIES if entry.family in NOISE_FAMILIES}
    if name not in known:
        raise unknown_name("noise", name, known)
    entry = known[name]
    options: dict[str, Any] = {}
    if entry.family == "attack" and len(parts) in (2, 3):
        norm, epsilon, *queries = parts
        spec = NoiseSpec("attack", name, norm=norm, severity=epsilon)
        options = {"norm": norm, "epsilon": epsilon}
        if queries:
            options["queries"] = _whole(queries[0], text)
    elif entry.family == "corruption" and len(parts) == 1:
        spec = NoiseSpec("corruption", name, severity=_whole(parts[0], text))
        options = {"severity": spec.severity}
    elif entry.family == "system" and len(parts) == 1:
        spec = NoiseSpec("system", name, option=parts[0])
        options = {"option": parts[0]}
    else:
        forms = {"attack": "NAME:NORM:EPSILON", "corruption": "NAME:SEVERITY", "system": "NAME:OPTION"}
        raise BadInput(f"noise '{text}'", forms[entry.family], "write for example pgd:linf:2/255 or gaussian_noise:3")
    maker = partial(make, entry.family, name, **options)
    try:
        maker()  # refuses bad options now, not in the middle of a sweep
    except TypeError as error:
        raise BadInput(f"noise '{text}'", f"options of {name}", "leave out the number of queries") from error
    return spec, maker


def _whole(text: str, noise: str) -> int:
    if not text.isdecimal():
        raise BadInput(f"'{text}' in noise '{noise}'", "a whole number", "write for example gaussian_noise:3")
    return int(text)
