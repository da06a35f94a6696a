"""From what a user writes to rows of noise: presets, profiles, single noises and chains of system noises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from seatrial.catalogue import ENTRIES, NOISE_FAMILIES, Entry, entries, make
from seatrial.core.noise import EIGHT_BIT, FROM_FLOAT, NoiseSpec
from seatrial.errors import BadInput, unknown_name
from seatrial.noise.chain import Chain
from seatrial.noise.rounded import Rounded

NoiseMaker = partial[Any]
Row = tuple[NoiseSpec, NoiseMaker]

QUICK_QUERIES = 300
PROFILES = ("quick", "robustmq", "sysnoise", "full")

_BENCHMARK = 15
_LINF = ("linf:0.5/255", "linf:2/255", "linf:8/255")
# Magnitudes of RobustART's driver (RobustMQ's attacks); L1 and L2 ones are stated for 3x224x224.
_ROBUSTMQ = {
    "fgsm": _LINF,
    "pgd": (
        *_LINF,
        *(f"l2:{size}@224" for size in ("0.5", "2", "8")),
        *(f"l1:{size}@224" for size in (100, 400, 1600)),
    ),
    "mim": _LINF,
    "autoattack": _LINF,
}
# Not in the paper, nor are tensor resizes and the decoders beside its three.
_SYSNOISE_LEFT_OUT = ("letterbox", "exif", "align_corners")
_SYSNOISE_OPTIONS_LEFT_OUT = ("torch-", "turbo-", "camera-")
_FLAGS = (FROM_FLOAT, EIGHT_BIT)
_PLAIN_DECODERS = ("pillow", "opencv", "pyav")


def noise_plan(noise: str | Iterable[str], *, gradients: bool) -> tuple[Row, ...]:
    """Return the rows of a preset (`none`, `quick`, `full`) or of a list of texts, each with what makes the noise.

    Texts are as `parse_noise` takes them. Without `gradients` the quick preset adds Square with 300 queries. Raises
    BadInput for unknown names and options.
    """
    if isinstance(noise, str):
        if noise == "none":
            return ()
        if noise not in ("quick", "full"):
            return tuple(parse_noise(text) for text in noise.split(","))
        noise = [text for family in NOISE_FAMILIES for text in profile_texts(noise, family, gradients=gradients)]
    return tuple(parse_noise(text) for text in noise)


def profile_texts(profile: str, family: str, *, gradients: bool) -> tuple[str, ...]:
    """Return the noises of one family (`attack`, `corruption`, `system`) in a profile, as texts.

    `quick` is that of a trial, `full` everything in the catalogue; `robustmq` has RobustMQ's attacks at its three
    magnitudes, the 15 corruptions of ImageNet-C and the grid of 3 decoders by 11 resizes; `sysnoise` the system noises
    of SysNoise alone. Raises BadInput for an unknown profile.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    known = entries(family)
    if profile == "full":
        grid = _grid() if family == "system" else ()
        return (*(f"{name}:{choice}" for name, entry in known.items() for choice in entry.choices), *grid)
    if profile == "quick":
        return tuple(_quick(known, gradients=gradients))
    if profile == "robustmq":
        if family == "attack":
            return tuple(f"{name}:{choice}" for name, choices in _ROBUSTMQ.items() for choice in choices)
        if family == "corruption":
            return tuple(f"{name}:{choice}" for name in benchmark_corruptions() for choice in known[name].choices)
        return _grid()
    if family != "system":
        return ()
    return tuple(
        f"{name}:{choice}"
        for name, entry in known.items()
        if name not in _SYSNOISE_LEFT_OUT
        for choice in entry.choices
        if not choice.startswith(_SYSNOISE_OPTIONS_LEFT_OUT)
    )


def benchmark_corruptions() -> tuple[str, ...]:
    """Return the 15 corruptions of the ImageNet-C benchmark: the first ones in the catalogue."""
    return tuple(entries("corruption"))[:_BENCHMARK]


def sysnoise_resizes() -> tuple[str, ...]:
    """Return the eleven resizes of SysNoise: those of Pillow and OpenCV."""
    return tuple(choice for choice in entries("system")["resize"].choices if not choice.startswith("torch-"))


def listed(text: str, family: str) -> tuple[str, ...]:
    """Return the noises in a comma-separated list of `none`, `all`, bare names (all their choices) and single noises.

    Raises BadInput for a name that is not of that family.
    """
    known = entries(family)
    if text == "none":
        return ()
    found: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        names = known if part == "all" else {name: known[name] for name in [part] if name in known}
        if part in names and not names[part].choices:
            raise BadInput(f"'{part}' without a budget", "NAME:NORM:EPSILON", f"write for example {part}:linf:2/255")
        if names:
            found += [f"{name}:{choice}" for name, entry in names.items() for choice in entry.choices]
            continue
        for piece in part.split("+"):
            name = piece.partition(":")[0].strip()
            if name not in known:
                raise _stranger(name, family)
        found.append(part)
    return tuple(found)


def _stranger(name: str, family: str) -> BadInput:
    """Return the error for a name that is not of a family: where it belongs, else the nearest of the family."""
    other = next((entry.family for entry in ENTRIES if entry.name == name and entry.family in NOISE_FAMILIES), None)
    if other is None:
        return unknown_name(family, name, entries(family))
    lists = {"attack": "--attacks", "corruption": "--corruptions", "system": "--system"}
    return BadInput(f"'{name}' in {lists[family]}", f"a noise of the family {family}", f"give it to {lists[other]}")


def parse_noise(text: str) -> Row:
    """Read one noise: `pgd:linf:2/255`, `gaussian_noise:3`, `resize:opencv-bilinear`, or several system noises at once.

    A number behind an epsilon is the number of queries; `from-float` at the end of an attack finds it on the float
    parent, `8-bit` rounds what it found to the levels of a picture file. System noises joined by `+`, such as
    `decoder:pyav+resize:opencv-area`, act together. Raises BadInput.
    """
    parts = [piece.strip() for piece in text.split("+")]
    if len(parts) == 1:
        return _single(parts[0])
    rows = [_single(part) for part in parts]
    if any(spec.family != "system" for spec, _ in rows):
        raise BadInput(f"noise '{text}'", "system noises around a +", "ask for attacks and corruptions one by one")
    if len({spec.name for spec, _ in rows}) < len(rows):
        raise BadInput(f"noise '{text}'", "each system noise once around a +", "leave all but one of its options out")
    spec = NoiseSpec("system", "+".join(s.name for s, _ in rows), option="+".join(str(s.option) for s, _ in rows))
    return spec, partial(_chain, tuple(maker for _, maker in rows))


def with_checks(texts: Iterable[str], *, queries: int | None) -> tuple[str, ...]:
    """Return attacks with the checks that keep a finding from being an artefact of masked gradients.

    Each attack that climbs gradients is also found on the float parent, and Square, which needs scores only, runs at
    the same budget (with `queries`, or its own number).
    """
    given = list(texts)
    found = list(given)
    known = entries("attack")
    for text in given:
        name, norm, epsilon, *more = text.split(":")
        if "gradients" not in known[name].needs or FROM_FLOAT in more:
            continue
        found.append(f"{text}:{FROM_FLOAT}")
        flags = [EIGHT_BIT] if EIGHT_BIT in more else []
        if not any(_is_square(other, norm, epsilon, flags) for other in found):
            asked = [] if queries is None else [str(queries)]
            found.append(":".join(("square", norm, epsilon, *asked, *flags)))
    return tuple(dict.fromkeys(found))


def _is_square(text: str, norm: str, epsilon: str, flags: list[str]) -> bool:
    """Whether `text` is Square at this budget with these flags, with any number of queries."""
    name, *parts = text.split(":")
    return name == "square" and parts[:2] == [norm, epsilon] and [p for p in parts[2:] if p in _FLAGS] == flags


def text_of(spec: NoiseSpec) -> str:
    """Return the text that `parse_noise` reads as `spec` (but for a number of queries)."""
    if spec.family == "system":
        options = str(spec.option).split("+")
        return "+".join(f"{name}:{option}" for name, option in zip(spec.name.split("+"), options, strict=True))
    parts = (spec.name, spec.norm, spec.severity, spec.option)
    return ":".join(str(part) for part in parts if part is not None)


def _rounded(maker: NoiseMaker) -> Rounded:
    return Rounded(attack=maker())


def _chain(makers: tuple[NoiseMaker, ...]) -> Chain:
    return Chain(parts=tuple(maker() for maker in makers))


def _quick(known: dict[str, Entry], *, gradients: bool) -> Iterator[str]:
    for name, entry in known.items():
        chosen = entry.quick
        if name == "square":
            chosen = () if gradients else (f"linf:2/255:{QUICK_QUERIES}",)
        yield from (f"{name}:{choice}" for choice in chosen)


def _grid() -> tuple[str, ...]:
    return tuple(f"decoder:{decoder}+resize:{resize}" for decoder in _PLAIN_DECODERS for resize in sysnoise_resizes())


def _single(text: str) -> Row:
    name, *parts = text.strip().split(":")
    known = {entry.name: entry for entry in ENTRIES if entry.family in NOISE_FAMILIES}
    if name not in known:
        raise unknown_name("noise", name, known)
    entry = known[name]
    options: dict[str, Any] = {}
    if entry.family == "attack" and len(parts) >= 2:
        norm, epsilon, *more = parts
        special = [flag for flag in _FLAGS if flag in more]
        more = [part for part in more if part not in special]
        if len(more) > 1:
            raise _malformed(text, "attack")
        spec = NoiseSpec("attack", name, option=":".join(special) or None, norm=norm, severity=epsilon)
        options = {"norm": norm, "epsilon": epsilon}
        if more:
            if not more[0].isdecimal():
                wanted = f"a number of queries, {' or '.join(_FLAGS)}"
                raise BadInput(f"'{more[0]}' in noise '{text}'", wanted, "write for example square:linf:2/255:300")
            options["queries"] = int(more[0])
    elif entry.family == "corruption" and len(parts) == 1:
        if not parts[0].isdecimal():
            raise _malformed(text, "corruption")
        spec = NoiseSpec("corruption", name, severity=int(parts[0]))
        options = {"severity": spec.severity}
    elif entry.family == "system" and len(parts) == 1:
        spec = NoiseSpec("system", name, option=parts[0])
        options = {"option": parts[0]}
    else:
        raise _malformed(text, entry.family)
    maker = partial(make, entry.family, name, **options)
    if spec.eight_bit:
        maker = partial(_rounded, maker)
    try:
        maker()  # refuses bad options now, not in the middle of a sweep
    except BadInput as error:
        if name in error.came:
            raise
        raise BadInput(f"{error.came} in noise '{text}'", error.wanted, error.do) from error
    except TypeError as error:
        raise BadInput(f"noise '{text}'", f"options of {name}", "leave out the number of queries") from error
    return spec, maker


def _malformed(text: str, family: str) -> BadInput:
    forms = {"attack": "NAME:NORM:EPSILON", "corruption": "NAME:SEVERITY", "system": "NAME:OPTION"}
    return BadInput(f"noise '{text}'", forms[family], "write for example pgd:linf:2/255 or gaussian_noise:3")
