"""Weights from a file, and whether they fit a network."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from seatrial.errors import BadInput
from seatrial.models.archive import check_members, existing_file, is_zip
from seatrial.models.program import runs_code

_WANTED = "weights as .safetensors or as a PyTorch checkpoint of tensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params", "state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.")
_HEADER_LIMIT = 100_000_000  # what the safetensors library itself accepts
_SHOWN = 6


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a PyTorch checkpoint, by name, on the CPU.

    A checkpoint is loaded weights-only; dictionaries named `state_dict`, `model` and the like around the tensors and
    the prefixes `module.` and `_orig_mod.` are taken off. Raises BadInput for damaged files, for pickles that want
    to run code, and for a safetensors header that is longer than its file.
    """
    existing_file(path, _WANTED)
    if path.suffix == ".safetensors":
        return without_prefixes(_safetensors(path))
    if path.suffix in (".pt2", ".onnx", ".tflite"):
        raise BadInput(f"'{path}' is a whole model", _WANTED, "pass it as the model, without --weights")
    if is_zip(path):
        with path.open("rb") as file:
            names = check_members(file, str(path))
        if "constants.pkl" in names:
            raise BadInput(
                f"'{path}' is a TorchScript program", _WANTED, "load it in your own code and save its state_dict()"
            )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise runs_code(path, error) from error
    except Exception as error:  # damaged pickles raise nearly everything
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"'{path}' cannot be read ({type(error).__name__}: {reason})", _WANTED, "download or save it again"
        ) from error
    return without_prefixes(_unwrapped(loaded, path))


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without a wrapper's prefix (`module.`, `_orig_mod.`) that every name has."""
    plain = dict(tensors)
    while plain:
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in plain)), None)
        if prefix is None:
            break
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def fit_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the weights") -> nn.Module:
    """Return a copy of `module` that holds `tensors`.

    Raises BadInput that lists missing names, unexpected names and shapes that differ; nothing is ignored but the
    counters of BatchNorm. Tied parameters may be given once.
    """
    twin = copy.deepcopy(module)
    fitted = matched(twin.state_dict(), tensors, source=source)
    twin.load_state_dict(fitted)
    return twin


def matched(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str = "the weights"
) -> dict[str, Tensor]:
    """Return `tensors` under the names of `expected`, complete; raises BadInput as `fit_weights` does."""
    given = _renamed(expected, tensors)
    owners: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in expected.items():
        owners.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    fitted, missing, shapes = {}, [], []
    for name, wanted in expected.items():
        twins = [twin for twin in owners[wanted.data_ptr(), tuple(wanted.shape)] if twin in given]
        tensor = given.get(name, given[twins[0]] if twins and wanted.numel() else None)
        if tensor is None and name.rpartition(".")[2] == "num_batches_tracked":
            tensor = wanted  # not read in evaluation, and absent in checkpoints older than PyTorch 0.4.1
        if tensor is None:
            missing.append(name)
        elif tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            shapes.append(f"{name} {tuple(tensor.shape)} {_kind(tensor)} for {tuple(wanted.shape)} {_kind(wanted)}")
        else:
            fitted[name] = tensor.to(wanted.dtype)
    unexpected = [name for name in given if name not in expected]
    if missing or unexpected or shapes:
        groups = {"missing": missing, "unexpected": unexpected, "other shape or type": shapes}
        raise BadInput(
            f"{source} do not fit the network: "
            + "; ".join(_listed(what, names) for what, names in groups.items() if names),
            f"exactly its {len(expected)} tensors",
            "check that the weights belong to this architecture and number of classes",
        )
    return fitted


def check_safetensors_header(path: Path) -> None:
    """Raise BadInput where the length of the header is impossible, before any library allocates it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8 or length > _HEADER_LIMIT:
        raise BadInput(
            f"'{path}' announces a header of {length} bytes in a file of {size} bytes",
            "a safetensors file",
            "download or save it again",
        )


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_safetensors_header(path)
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"'{path}' is damaged ({reason})", "a safetensors file", "download or save it again") from error


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if isinstance(loaded, Mapping):
        tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor) and isinstance(name, str)}
        if tensors and len(tensors) == len(loaded):
            return tensors
        if tensors:
            extra = [str(name) for name in loaded if name not in tensors]
            raise BadInput(
                f"'{path}' mixes tensors with {', '.join(extra[:_SHOWN])}",
                _WANTED,
                "save the module's state_dict() alone",
            )
    raise BadInput(
        f"'{path}' holds a {type(loaded).__name__} without tensors", _WANTED, "save the module's state_dict()"
    )


def _renamed(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off a prefix such as Lightning's `model.` where every name has it and none fits with it."""
    given = dict(tensors)
    if not given or any(name in expected for name in given):
        return given
    prefix = next(iter(given)).partition(".")[0] + "."
    if all(name.startswith(prefix) for name in given):
        plain = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
        if any(name in expected for name in plain):
            return plain
    return given


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"
