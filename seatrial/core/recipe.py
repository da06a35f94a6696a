"""A recipe: what a quantizer decided, as small frozen edits that can be printed, saved and carried out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from seatrial.core.grids import Affine, Dynamic, FloatType, Grid, Grouped, Logarithmic, Twin
from seatrial.core.precision import INTEGER_BITS
from seatrial.core.sites import Site
from seatrial.errors import BadInput

VERSION = 1


@dataclass(frozen=True, eq=False)
class Round:
    """Put the tensor at `site` on `grid`."""

    site: Site
    grid: Grid


@dataclass(frozen=True, eq=False)
class Migrate:
    """Replace the output X of `producer` by (X - shift) / scale and undo it in all consumers.

    `producer` and `consumers` are operators named by their output sites; `shift` and `scale` have one value per
    channel. Uses of X that are not consumers get the inverse affine. The function of the network does not change.
    Source: Wei et al. 2023 (Outlier Suppression+), eq. 3 to 6; Nagel et al. 2019 for scales between two layers.
    """

    producer: Site
    consumers: tuple[Site, ...]
    shift: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Replace:
    """Give the parameter that `site` (a `weight` or `bias` port) reads new values; a missing bias is added."""

    site: Site
    value: Tensor


Edit = Round | Migrate | Replace


@dataclass(frozen=True, eq=False)
class Recipe:
    """Edits in the order in which they are carried out, for the graph with this `signature` alone."""

    edits: tuple[Edit, ...]
    signature: tuple[str, ...]
    """The operators of the graph it was planned on, see `seatrial.core.sites.signature`."""
    notes: tuple[str, ...] = ()
    """What the quantizer had to leave out or do otherwise."""

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounding edits alone."""
        return tuple(edit for edit in self.edits if isinstance(edit, Round))

    def save(self, path: Path) -> tuple[Path, Path]:
        """Write `path`.json and `path`.safetensors and return both; tensors never stand in the JSON."""
        tensors: dict[str, Tensor] = {}
        edits = [_to_data(edit, f"edit{i}", tensors) for i, edit in enumerate(self.edits)]
        text = json.dumps(
            {"version": VERSION, "signature": self.signature, "notes": self.notes, "edits": edits}, indent=1
        )
        files = _files(path)
        files[0].write_text(text + "\n", encoding="utf-8")
        # Copies, because safetensors refuses tensors that share memory.
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, files[1])
        return files

    @staticmethod
    def load(path: Path) -> Recipe:
        """Read what `save(path)` wrote; raises BadInput for another version and for a missing or damaged file."""
        text_file, tensor_file = _files(path)
        try:
            data = json.loads(text_file.read_text(encoding="utf-8"))
            if data["version"] != VERSION:
                raise BadInput(f"recipe version {data['version']}", f"version {VERSION}", "update seatrial")
            tensors = load_tensors(tensor_file.read_bytes())
            edits = tuple(_from_data(edit, tensors) for edit in data["edits"])
            return Recipe(edits, tuple(map(str, data["signature"])), tuple(map(str, data["notes"])))
        except OSError as error:
            raise BadInput(f"{error.filename}: {error.strerror}", "the two files of a recipe", "name them") from error
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise BadInput(f"recipe {path} ({reason})", "a recipe as saved by seatrial", "make it again") from error


def _files(path: Path) -> tuple[Path, Path]:
    """Return the two files; endings are added, not replaced: a name may hold a dot."""
    return path.with_name(path.name + ".json"), path.with_name(path.name + ".safetensors")


def _to_data(edit: Edit, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    def keep(part: str, tensor: Tensor) -> str:
        tensors[f"{name}.{part}"] = tensor.detach()
        return f"{name}.{part}"

    match edit:
        case Round(site, Affine() as grid):
            fields = {
                "bits": grid.bits,
                "signed": grid.signed,
                "axis": grid.axis,
                "narrow": grid.narrow,
            }
            kept = {"scale": keep("scale", grid.scale), "zero_point": keep("zero_point", grid.zero_point)}
            return {"edit": "round", "site": str(site), "grid": "affine", **fields, **kept}
        case Round(site, FloatType(kind)):
            return {"edit": "round", "site": str(site), "grid": "float", "kind": kind}
        case Round(site, Dynamic(bits, symmetric, group)):
            fields = {"bits": bits, "symmetric": symmetric, "group": group}
            return {"edit": "round", "site": str(site), "grid": "dynamic", **fields}
        case Round(site, Grouped(bits, scale, zero, group)):
            kept = {"scale": keep("scale", scale), "zero_point": keep("zero_point", zero)}
            return {"edit": "round", "site": str(site), "grid": "grouped", "bits": bits, "group": group, **kept}
        case Round(site, Logarithmic(bits, scale, steps)):
            fields = {"bits": bits, "steps": steps, "scale": keep("scale", scale)}
            return {"edit": "round", "site": str(site), "grid": "logarithmic", **fields}
        case Round(site, Twin(bits, fine, coarse, by_sign)):
            kept = {"fine": keep("fine", fine), "coarse": keep("coarse", coarse)}
            return {"edit": "round", "site": str(site), "grid": "twin", "bits": bits, "by_sign": by_sign, **kept}
        case Migrate(producer, consumers, shift, scale):
            sites = {"producer": str(producer), "consumers": [str(site) for site in consumers]}
            return {"edit": "migrate", **sites, "shift": keep("shift", shift), "scale": keep("scale", scale)}
        case Replace(site, value):
            return {"edit": "replace", "site": str(site), "value": keep("value", value)}
    raise TypeError(f"not an edit: {edit!r}")


def _from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    match data["edit"]:
        case "round":
            return Round(Site.parse(data["site"]), _grid(data, tensors))
        case "migrate":
            consumers = tuple(Site.parse(text) for text in data["consumers"])
            return Migrate(Site.parse(data["producer"]), consumers, tensors[data["shift"]], tensors[data["scale"]])
        case "replace":
            return Replace(Site.parse(data["site"]), tensors[data["value"]])
    raise BadInput(f"edit '{data['edit']}'", "round, migrate or replace", "update seatrial")


def _grid(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Grid:
    if data["grid"] == "float" and data["kind"] in ("bf16", "fp16"):
        return FloatType(data["kind"])
    bits = data["bits"]
    if bits not in INTEGER_BITS:
        raise ValueError(f"{bits} bits")
    match data["grid"]:
        case "affine" if data["axis"] in (None, *range(8)):
            scale, zero = tensors[data["scale"]].float(), tensors[data["zero_point"]].to(torch.int64)
            return Affine(bits, bool(data["signed"]), scale, zero, data["axis"], bool(data["narrow"]))
        case "dynamic" if data["group"] is None or _counts(data["group"]):
            return Dynamic(bits, bool(data["symmetric"]), data["group"])
        case "grouped" if _counts(data["group"]):
            return Grouped(bits, tensors[data["scale"]].float(), tensors[data["zero_point"]].long(), data["group"])
        case "logarithmic" if _counts(data["steps"]):
            return Logarithmic(bits, tensors[data["scale"]].float(), data["steps"])
        case "twin":
            return Twin(bits, tensors[data["fine"]].float(), tensors[data["coarse"]].float(), bool(data["by_sign"]))
    raise ValueError(f"grid {data['grid']}")


def _counts(value: object) -> bool:
    return isinstance(value, int) and value > 0
