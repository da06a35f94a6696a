"""The one function that opens a `.pt2` file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch.export import ExportedProgram

import seatrial.core.qdq  # noqa: F401  (registers the operators that our own files use)
from seatrial.errors import BadInput
from seatrial.models.archive import check_members, existing_file, is_zip
from seatrial.models.program_text import check_program_text, parsed

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ALLOW = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_LOCK = threading.Lock()
_KNOWN = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(model_weights_config\.json|weight_\d+|model\.pt)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+|model\.pt)"
    r"|extra/[\w.\-]+)\Z"
)
_TEXT_LIMIT = 512 << 20
_CONFIGS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
_WANTED = "a program saved by torch.export.save"


def open_program(path: Path) -> ExportedProgram:
    """Load an exported program without running anything that the file brings along.

    The archive is checked before torch sees it: only the members that torch 2.12 writes, no custom objects, bounded
    sizes, no text that torch would evaluate (`program_text`), pickles loaded weights-only. The guards of the program
    are dropped, because they are compiled as Python. Raises BadInput with what was found.
    """
    existing_file(path, _WANTED)
    if not is_zip(path):
        raise BadInput(f"'{path}' is no zip archive", _WANTED, "export the model again")
    # One open file for the check and the load, so that the file cannot be exchanged in between.
    with path.open("rb") as file:
        names = check_members(file, str(path), known=lambda name: _KNOWN.match(name) is not None)
        _check_contents(file, path, names)
        file.seek(0)
        with weights_only(), _quiet():
            try:
                program = torch.export.load(file)
            except pickle.UnpicklingError as error:
                raise runs_code(path, error) from error
            except Exception as error:  # the deserializer raises whatever the file makes it raise
                reason = " ".join(str(error).split())[:200]
                raise BadInput(
                    f"'{path}' cannot be loaded ({type(error).__name__}: {reason})",
                    _WANTED + f" (this is torch {torch.__version__})",
                    "export the model again with this version of torch",
                ) from error
    program._guards_code = []
    return program


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Force every `torch.load` in this process to be weights-only while the block runs; one block at a time."""
    with _LOCK:
        before = {name: os.environ.get(name) for name in (_FORCE, _ALLOW)}
        os.environ[_FORCE] = "1"
        os.environ.pop(_ALLOW, None)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def runs_code(path: Path | str, error: Exception) -> BadInput:
    """Return the error for a pickle that asks for more than tensors."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = found.group(1) if found else "an instruction that tensors do not need"
    return BadInput(
        f"'{path}' holds a pickle that wants to run code ({what})",
        "tensors only",
        "save the weights as safetensors, or get the file from a source that you trust",
    )


def _check_contents(file: BinaryIO, path: Path, names: dict[str, int]) -> None:
    """Look at every part of the archive through the reader that torch itself uses."""
    source = str(path)
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
        seen = set(reader.get_all_records())
    except RuntimeError as error:
        raise BadInput(f"'{path}' is a damaged archive", _WANTED, "export the model again") from error
    if seen != set(names):
        raise BadInput(f"'{path}' reads differently in two zip readers", _WANTED, "export the model again")
    required = {"archive_format", "models/model.json", "data/sample_inputs/model.pt"}
    if missing := sorted(required - seen):
        raise BadInput(f"'{path}' lacks {', '.join(missing)}", _WANTED, "export the model with torch 2.9 or later")
    if any(names[name] > _TEXT_LIMIT for name in names if name.endswith(".json") or name.startswith("extra/")):
        raise BadInput(f"'{path}' holds over {_TEXT_LIMIT >> 20} MiB of text", _WANTED, "export the model again")
    check_program_text(_record(reader, "models/model.json", path), source)
    pickles = ["data/sample_inputs/model.pt"]
    for folder, config in _CONFIGS.items():
        if folder + config in seen:
            pickles += _check_config(parsed(_record(reader, folder + config, path), source), folder, names, source)
        elif folder + "model.pt" in seen:
            pickles.append(folder + "model.pt")
    for name in pickles:
        data = _record(reader, name, path)
        if name.startswith("data/sample_inputs") and not data:
            continue
        value = _check_pickle(data, f"{path}:{name}")
        if name.startswith("data/sample_inputs"):
            _check_inputs(value, source)


def _record(reader: torch._C.PyTorchFileReader, name: str, path: Path) -> bytes:
    try:
        return reader.get_record(name)
    except RuntimeError as error:
        raise BadInput(f"'{path}' is damaged at {name}", _WANTED, "download it or export the model again") from error


def _check_config(config: dict, folder: str, names: dict[str, int], source: str) -> list[str]:
    """Return the pickled entries of a table of tensors; raises BadInput where a tensor is larger than its bytes."""
    refused = BadInput(f"'{source}' has a damaged table of {folder.split('/')[1]}", _WANTED, "export the model again")
    pickled = []
    try:
        for name, entry in config["config"].items():
            member = folder + entry["path_name"]
            if entry["path_name"].startswith("custom_obj") or member not in names or '"' in name:
                raise refused
            if entry["use_pickle"]:
                pickled.append(member)
                continue
            count = 1
            for size in entry["tensor_meta"]["sizes"]:
                count *= int(size["as_int"])
            # A tensor with stride 0 is larger than its bytes; a few bytes that pose as terabytes are refused.
            if count < 0 or count > max(4 << 20, 200 * names[member]):
                raise refused
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused from error
    return sorted(set(pickled))


def _check_pickle(data: bytes, source: str) -> object:
    buffer = io.BytesIO(data)
    if data[:4] == b"PK\x03\x04":
        check_members(buffer, source)
        buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise runs_code(source, error) from error
    except Exception as error:  # damaged pickles raise nearly everything
        raise BadInput(f"'{source}' is damaged ({type(error).__name__})", _WANTED, "export the model again") from error


def _check_inputs(value: object, source: str) -> None:
    """Refuse sample inputs that are text: torch pastes them into the code of its guards."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            stack += part.values()
        elif isinstance(part, list | tuple):
            stack += part
        elif not (part is None or isinstance(part, torch.Tensor | bool | int | float)):
            raise BadInput(
                f"'{source}' has a sample input of type {type(part).__name__}", "tensors and numbers", "export it again"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's two notes about read-only buffers and failed attempts off the terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.export.pt2_archive._package")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
