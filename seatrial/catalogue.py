"""The one page that names every concrete method: name -> "module:Class"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from seatrial.core.noise import NoiseSpec
from seatrial.errors import BadInput, unknown_name


@dataclass(frozen=True)
class Entry:
    """One method: `needs` says what it takes from a model (`gradients`, `logits`, `graph`) or which extra to install.

    `choices` are the options (system noises) or severities (corruptions, epsilons of attacks) of `--noise full`;
    `quick` those of `--noise quick`.
    """

    family: str
    name: str
    path: str
    paper: str
    needs: str = ""
    choices: tuple[str | int, ...] = ()
    quick: tuple[str | int, ...] = ()


_SEVERITIES = (1, 2, 3, 4, 5)
_EPSILONS = ("0.5/255", "2/255", "8/255")
_HENDRYCKS = "Hendrycks and Dietterich 2019"
_SYSNOISE = "SysNoise, Wang et al. 2023"
_RESIZES = (
    *(f"pillow-{name}" for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")),
    *(f"opencv-{name}" for name in ("nearest", "bilinear", "area", "bicubic", "lanczos")),
)

ENTRIES: tuple[Entry, ...] = (
    Entry("attack", "fgsm", "seatrial.noise.fgsm:FGSM", "Goodfellow et al. 2015", "gradients", _EPSILONS, ("2/255",)),
    Entry("attack", "pgd", "seatrial.noise.pgd:PGD", "Madry et al. 2018", "gradients", _EPSILONS, ("2/255",)),
    Entry("attack", "square", "seatrial.noise.square:Square", "Andriushchenko et al. 2020", "logits", _EPSILONS),
    Entry(
        "corruption",
        "gaussian_noise",
        "seatrial.noise.gaussian_noise:GaussianNoise",
        _HENDRYCKS,
        choices=_SEVERITIES,
        quick=(3,),
    ),
    Entry(
        "corruption",
        "motion_blur",
        "seatrial.noise.motion_blur:MotionBlur",
        _HENDRYCKS,
        choices=_SEVERITIES,
        quick=(3,),
    ),
    Entry(
        "corruption", "brightness", "seatrial.noise.brightness:Brightness", _HENDRYCKS, choices=_SEVERITIES, quick=(3,)
    ),
    Entry(
        "corruption",
        "jpeg_compression",
        "seatrial.noise.jpeg_compression:JpegCompression",
        _HENDRYCKS,
        choices=_SEVERITIES,
        quick=(3,),
    ),
    Entry(
        "system",
        "resize",
        "seatrial.noise.resize_noise:ResizeNoise",
        _SYSNOISE,
        "encoded pictures that are resized",
        _RESIZES,
        ("opencv-bilinear", "opencv-area", "pillow-bicubic"),
    ),
    Entry(
        "system",
        "decoder",
        "seatrial.noise.decoder_noise:DecoderNoise",
        _SYSNOISE,
        "encoded pictures",
        ("pillow", "opencv", "pyav"),
        ("pillow", "opencv", "pyav"),
    ),
    Entry(
        "system",
        "precision",
        "seatrial.noise.precision_noise:PrecisionNoise",
        _SYSNOISE,
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
FULL_QUERIES = 5000


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
            if entry.name == "square" and name == "quick" and not gradients:
                chosen = ("2/255",)
            for choice in chosen:
                queries = QUICK_QUERIES if name == "quick" else FULL_QUERIES
                yield _row(entry, choice, {"queries": queries} if entry.name == "square" else {})


def parse_noise(text: str) -> tuple[NoiseSpec, NoiseMaker]:
    """Read one noise, such as `pgd:linf:2/255`, `gaussian_noise:3` or `resize:opencv-bilinear`."""
    name, *parts = text.strip().split(":")
    known = {entry.name: entry for entry in ENTRIES if entry.family in NOISE_FAMILIES}
    if name not in known:
        raise unknown_name("noise", name, known)
    entry = known[name]
    if entry.family == "attack" and len(parts) in (2, 3) and parts[0] == "linf":
        more = {"queries": _whole(parts[2], text)} if len(parts) == 3 and name == "square" else {}
        return _row(entry, parts[1], more)
    if entry.family == "corruption" and len(parts) == 1:
        return _row(entry, _whole(parts[0], text), {})
    if entry.family == "system" and len(parts) == 1:
        return _row(entry, parts[0], {})
    forms = {"attack": "NAME:linf:EPSILON", "corruption": "NAME:SEVERITY", "system": "NAME:OPTION"}
    raise BadInput(f"noise '{text}'", forms[entry.family], "write for example pgd:linf:2/255 or gaussian_noise:3")


def _whole(text: str, noise: str) -> int:
    if not text.isdecimal():
        raise BadInput(f"'{text}' in noise '{noise}'", "a whole number", "write for example gaussian_noise:3")
    return int(text)


def _row(entry: Entry, choice: str | int, more: Mapping[str, Any]) -> tuple[NoiseSpec, NoiseMaker]:
    if entry.family == "attack":
        spec = NoiseSpec("attack", entry.name, norm="linf", severity=choice)
        maker = partial(make, "attack", entry.name, epsilon=choice, norm="linf", **more)
    elif entry.family == "corruption":
        spec = NoiseSpec("corruption", entry.name, severity=choice)
        maker = partial(make, "corruption", entry.name, severity=choice)
    else:
        spec = NoiseSpec("system", entry.name, option=str(choice))
        maker = partial(make, "system", entry.name, option=str(choice))
    maker()  # refuses bad options now, not in the middle of a sweep
    return spec, maker
