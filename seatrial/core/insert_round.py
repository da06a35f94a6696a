"""Put the operator of a grid behind a value of a graph copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

import seatrial.core.further_rounds
import seatrial.core.qdq  # noqa: F401  (both register the operators)
from seatrial.core.constants import constant
from seatrial.core.grids import Affine, Dynamic, FloatType, Grid, Grouped, Logarithmic, Twin
from seatrial.core.sites import Site
from seatrial.errors import BadInput

_ops = torch.ops.seatrial


def insert_round(module: fx.GraphModule, node: fx.Node, value: fx.Node, site: Site, grid: Grid, name: str) -> None:
    """Round `value`, which stands at the port of `site` on `node`, for that reader or, at an output, for all.

    Constants take names that begin with `name`. Raises BadInput for a grid that does not fit the value.
    """
    _check(grid, value, site)
    # Inputs of a graph stand together in front of everything else.
    behind = [other for other in module.graph.nodes if other.op == "placeholder"][-1]
    target, arguments = call_of(grid)
    with module.graph.inserting_after(behind if value.op == "placeholder" else value):
        rounded = module.graph.call_function(target, (value,))
    read = [constant(module, f"{name}_{part}", held, rounded) if isinstance(held, Tensor) else held
            for part, held in arguments.items()]  # fmt: skip
    rounded.args = (value, *read)
    rounded.meta = {"val": value.meta.get("val"), "nn_module_stack": node.meta.get("nn_module_stack", {})}
    rounded.meta["site"] = str(site)
    if site.port == "output":
        value.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
    else:
        node.replace_input_with(value, rounded)


def call_of(grid: Grid) -> tuple[torch._ops.OpOverload, Mapping[str, Tensor | int | str | bool]]:
    """Return the operator of a grid and its arguments behind the value, by name."""
    match grid:
        case Affine(_, _, scale, zero_point, axis):
            low, high = grid.codes
            given = {"low": low, "high": high, "axis": -1 if axis is None else axis}
            return _ops.qdq.default, {"scale": scale.float(), "zero_point": zero_point.long(), **given}
        case FloatType(kind):
            return _ops.narrow_float.default, {"kind": kind}
        case Dynamic(bits, symmetric, group):
            return _ops.dynamic_qdq.default, {"bits": bits, "symmetric": symmetric, "group": group or 0}
        case Grouped(bits, scale, zero_point, group):
            held = {"scale": scale.float(), "zero_point": zero_point.long()}
            return _ops.grouped_qdq.default, {**held, "bits": bits, "group": group}
        case Logarithmic(bits, scale, steps):
            return _ops.logarithmic_qdq.default, {"scale": scale.float(), "bits": bits, "steps": steps}
        case Twin(bits, fine, coarse, by_sign):
            held = {"fine": fine.float(), "coarse": coarse.float()}
            return _ops.twin_qdq.default, {**held, "bits": bits, "by_sign": by_sign}
    raise TypeError(f"not a grid: {grid!r}")


def fake(x: Tensor, grid: Grid) -> Tensor:
    """Return `x` on `grid`, in the floating type of `x`."""
    target, arguments = call_of(grid)
    return target(x, *arguments.values())


def _check(grid: Grid, value: fx.Node, site: Site) -> None:
    for name, held in call_of(grid)[1].items():
        if name in ("scale", "fine", "coarse") and isinstance(held, Tensor):
            if not bool((held > 0).all() & held.isfinite().all()):
                raise BadInput(
                    f"a grid at {site} with a scale that is not positive", "finite scales above 0", "re-plan"
                )
            if isinstance(grid, Logarithmic | Twin) and held.ndim:
                raise BadInput(f"a grid at {site} with {len(held)} scales", "one for the tensor", "re-plan")
    seen = value.meta.get("val")
    if isinstance(grid, Affine):
        _check_affine(grid, seen, site)
    if isinstance(grid, Grouped) and isinstance(seen, Tensor):
        wanted = (seen.shape[0], -(-seen.shape[-1] // grid.group))
        if seen.ndim != 2 or grid.scale.shape != wanted or grid.zero_point.shape != wanted:
            shapes = f"scale {tuple(grid.scale.shape)} for {tuple(seen.shape)} in groups of {grid.group}"
            raise BadInput(f"a grid at {site} with {shapes}", "one value for each row and group", "re-plan")


def _check_affine(grid: Affine, seen: object, site: Site) -> None:
    if grid.scale.shape != grid.zero_point.shape or grid.scale.ndim != int(grid.axis is not None):
        shapes = f"scale {tuple(grid.scale.shape)} and zero point {tuple(grid.zero_point.shape)}"
        raise BadInput(f"a grid at {site} with {shapes}", "scalars, or one value per channel", "re-plan")
    if grid.axis is not None and isinstance(seen, Tensor):
        size = seen.shape[grid.axis] if 0 <= grid.axis < seen.ndim else None
        if size is None or (isinstance(size, int) and size != len(grid.scale)):
            came = f"{len(grid.scale)} scales along axis {grid.axis} at {site} of shape {tuple(seen.shape)}"
            raise BadInput(came, "one scale per channel", "re-plan")
