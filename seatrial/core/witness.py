"""What an export had reached when it failed, and a quiet place to let it fail."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOGGERS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch.fx.experimental.sym_node")
_LOOKS = {"storage_offset", "stride", "size", "dim", "get_device", "is_contiguous", "is_complex", "is_floating_point"}
"""Questions about a tensor, which torch asks after the last operator too."""


@final
class Witness(TorchFunctionMode):
    """Remembers the operator and module that an export reached, so that its failure can name them.

    Where a dimension that should stay dynamic becomes a constant, torch fails only at the end; the operator where it
    happened is remembered instead.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._reached = ("none", "")
        self._fixed: tuple[str, str] | None = None
        self._stack, self._dims = [""], list[torch.SymInt]()
        self._hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, module in model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._enter(name)))
            self._hooks.append(module.register_forward_hook(self._leave))

    @property
    def operator_and_module(self) -> tuple[str, str]:
        """Where it happened, as far as is known; the path of the whole model is ''."""
        return self._fixed or self._reached

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._dims = [dim for tensor in tensors for dim in tensor.shape if isinstance(dim, torch.SymInt)]

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda *_: self._stack.append(name)

    def _leave(self, *_: object) -> None:
        self._stack.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if not name.startswith("_") and name not in _LOOKS:
            self._reached = (name, self._stack[-1])
        result = func(*args, **(kwargs or {}))
        if self._fixed is None and any(dim.node.maybe_as_int() is not None for dim in self._dims):
            self._fixed = self._reached
        return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch prints and logs about a failing export off the terminal; the error says it in one line.

    What is written to stderr in a block that succeeds is passed on when it ends.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    written = io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(written):
            yield
        sys.stderr.write(written.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
