"""Alter operators of an eager module as another runtime would have them, for modules that do not export whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from seatrial.core.alter_graph import GRAPH_EDITS
from seatrial.errors import NotApplicable, unknown_name

# Where the flag stands among the positional arguments.
_CEIL_AT: dict[Callable[..., Any], int] = {
    functional.max_pool2d: 5,
    functional.max_pool2d_with_indices: 5,
    functional.avg_pool2d: 4,
    torch.max_pool2d: 5,
}
_NEAREST = ("nearest", "nearest-exact")


def altered_module(module: nn.Module, edits: tuple[str, ...]) -> nn.Module:
    """Return a copy of an eager module in eval mode that runs with the edits of `GRAPH_EDITS`.

    The copy's forward raises NotApplicable where it meets no operator that an edit could change. A module with a
    `backbone` and a `transform` (torchvision's detectors) is altered in its backbone alone, for its transform resizes
    pictures by the function that its network upsamples by. Raises BadInput for an unknown edit.

    Source: SysNoise (Wang et al. 2023), table 1. Departures: as in `seatrial.core.alter_graph.altered`; sizes are not
    compared, because they depend on the picture; scripted parts stay as they are.
    """
    for edit in edits:
        if edit not in GRAPH_EDITS:
            raise unknown_name("edit of a module", edit, GRAPH_EDITS)
    twin = copy.deepcopy(module).eval()
    if isinstance(getattr(twin, "backbone", None), nn.Module) and hasattr(twin, "transform"):
        twin.backbone = _Altered(twin.backbone, edits)  # pyright: ignore[reportArgumentType]
        return twin
    return _Altered(twin, edits)


@final
class _Altered(nn.Module):
    """A module whose calls of pooling and interpolation are rewritten while it runs."""

    def __init__(self, inner: nn.Module, edits: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.edits = inner, edits

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "edits") or name.startswith("_"):
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)  # such as a backbone's `out_channels`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        rewriting = _Rewriting(self.edits)
        with rewriting:
            found = self.inner(*args, **kwargs)
        missing = [edit for edit in self.edits if edit not in rewriting.met]
        if missing:
            raise NotApplicable(f"{type(self.inner).__name__} has no operator that {' or '.join(missing)} could change")
        return found


@final
class _Rewriting(TorchFunctionMode):
    """Rewrites calls in this thread alone, and remembers which edits met an operator."""

    def __init__(self, edits: Iterable[str]) -> None:
        super().__init__()
        self.edits = tuple(edits)
        self.met: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        for edit in self.edits:
            if edit in ("ceil_mode", "floor_mode") and func in _CEIL_AT:
                self.met.add(edit)
                args, options["ceil_mode"] = _spread(func, args, options), edit == "ceil_mode"
            elif func is functional.interpolate and args[0].ndim == 4 and self._interpolated(edit, options):
                self.met.add(edit)
        return func(*args, **options)

    def _interpolated(self, edit: str, options: dict[str, Any]) -> bool:
        """Rewrite the options of `interpolate` (torch hands over the picture alone by place)."""
        mode = options.get("mode", "nearest")
        if edit == "upsample:bilinear" and mode in (*_NEAREST, "bilinear"):
            if mode != "bilinear":
                options |= {"mode": "bilinear", "align_corners": False}
        elif edit == "upsample:nearest" and mode in (*_NEAREST, "bilinear"):
            if mode == "bilinear":
                options |= {"mode": "nearest", "align_corners": None, "antialias": False}
        elif edit == "align_corners" and mode in ("bilinear", "bicubic"):
            options["align_corners"] = not options.get("align_corners")
        else:
            return False
        return True


def _spread(func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the positional arguments before the flag; those behind it go by name."""
    at = _CEIL_AT[func]
    behind = ("count_include_pad", "divisor_override") if func is functional.avg_pool2d else ("return_indices",)
    options |= dict(zip(behind, args[at + 1 :]))
    return args[:at]
