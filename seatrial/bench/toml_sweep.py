"""The TOML file that describes a larger sweep, read and checked; nothing is opened or run here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from seatrial.core.precision import Bits
from seatrial.errors import BadInput, unknown_name

_NOISE = re.compile(r"[a-z][a-z0-9_]*(:[A-Za-z0-9_.+-]+(/[0-9]+)?)*")
_FLOATS = ("float32", "bf16")
_MOST_BYTES = 1_000_000
NoisePreset = Literal["none", "quick", "full"]


def _bits(text: str) -> str:
    return text if text in _FLOATS else str(Bits.parse(text))


def _noise(text: str) -> str:
    if not _NOISE.fullmatch(text):
        raise BadInput(f"noise '{text}'", "a name with options after colons", "write for example pgd:linf:2/255")
    return text


def _preset(value: object) -> object:
    if isinstance(value, str) and value not in get_args(NoisePreset):
        raise unknown_name("noise preset", value, get_args(NoisePreset))
    return value


def _model(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelEntry(_Strict):
    """One model: a name such as `timm:resnet18` or a file, and its weights where they stand apart."""

    name: str = Field(min_length=1)
    weights: str | None = None


BitsText = Annotated[str, AfterValidator(_bits)]
NoiseText = Annotated[str, AfterValidator(_noise)]


class SweepFile(_Strict):
    """What a sweep file may say; lists multiply (every model on every target by every method at every precision).

    Names are as on the command line and are looked up later; paths are as written. `noise` is a preset (`none`,
    `quick`, `full`) or a list such as `["pgd:linf:2/255", "gaussian_noise:3", "resize:opencv-bilinear"]`.
    """

    models: Annotated[list[Annotated[ModelEntry, BeforeValidator(_model)]], Field(min_length=1)]
    data: str | None = None
    classes: str | None = None
    calibration: str | None = None
    calibration_samples: PositiveInt = 256
    targets: Annotated[list[str], Field(min_length=1)] = ["auto"]
    methods: Annotated[list[str], Field(min_length=1)] = ["nearest"]
    bits: Annotated[list[BitsText], Field(min_length=1)] = ["w8a8"]
    keep: list[str] = []
    noise: Annotated[NoisePreset | list[NoiseText], BeforeValidator(_preset)] = "quick"
    limit: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    batch: PositiveInt = 64
    threads: PositiveInt = 2
    jobs: PositiveInt = 1
    cache_gb: Annotated[float, Field(ge=0)] = 0.0
    out: str | None = None


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file; raises BadInput for a missing or malformed one, and for unknown fields (nearest match)."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(f"{path} with {path.stat().st_size} bytes", "a TOML file below 1 MB", "check the path")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"no file {path}", "a TOML sweep file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} that cannot be read ({error})", "a TOML sweep file", "check the path") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: {error}", "TOML", "mend that line") from error
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        raise _explained(path, data, error) from error


def _explained(path: Path, data: dict[str, Any], error: ValidationError) -> BadInput:
    """Return the first fault as one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ModelEntry if first["loc"][0] == "models" else SweepFile
        unknown = unknown_name("field", str(first["loc"][-1]), known.model_fields)
        return BadInput(f"{path}: {unknown.came}", unknown.wanted, unknown.do)
    given = "" if first["type"] == "missing" else f" = {str(first['input'])[:80]!r}"
    return BadInput(
        f"{path}: {where}{given}", first["msg"][0].lower() + first["msg"][1:], "see docs of `seatrial sweep`"
    )
