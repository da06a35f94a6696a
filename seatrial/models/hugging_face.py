"""From `hf:REPO_OR_FOLDER` to a network of transformers; code from the repository is never run."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seatrial.errors import BadInput, missing_extra
from seatrial.models.checkpoint import check_safetensors_header, fit_weights, load_weights
from seatrial.models.labels import labels_of_config
from seatrial.models.names import RANDOM, RANDOM_WARNING, Found, Weights, seeded
from seatrial.models.preprocessing import of_transformers

_TASKS = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
_SHOWN = 6
_CONFIG_LIMIT = 16 << 20


def from_hugging_face(name: str, weights: Weights, size_px: tuple[int, int] | None) -> Found:
    """Build an image or text classifier or a language model from a repository or a local folder (offline).

    The task comes from `architectures` in `config.json`. Weights are safetensors, else a `.bin` loaded weights-only.
    Raises BadInput for unknown tasks, configurations that ask for remote code, weights that do not fit, and where
    nothing can be downloaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "text", f"hf:{name}") from error
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    if folder.is_dir():
        _check_folder(folder)
    elif name.startswith((".", "/", "~")) or folder.exists():
        raise BadInput(f"'{name}' is no folder", "a folder with config.json, or a repository", "check the path")
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # hub, network, file and validation errors have no common base
        raise _unreachable(name, error) from error
    task = _task(config, name)
    if size_px is not None and isinstance(getattr(config, "image_size", None), int):
        config.image_size = size_px[0]
    config._attn_implementation = "eager"
    builder = getattr(transformers, task)
    _check_size(builder, config, name)
    with _quiet():
        module, warnings = _loaded(builder, config, source, weights, name)
    module = module.float().eval()
    if task != "AutoModelForImageClassification":
        accepted = inspect.signature(module.forward).parameters
        inputs = tuple(key for key in ("input_ids", "attention_mask") if key in accepted)
        labels = labels_of_config(config.id2label, None) if "Sequence" in task else None
        return Found(module, None, labels, warnings, "text", inputs)
    labels = labels_of_config(config.id2label, config.num_labels)
    preprocessing = None
    if (processor := _processor(source)) is not None:
        preprocessing = of_transformers(processor)
    edge = getattr(config, "image_size", None)
    size = (edge, edge) if isinstance(edge, int) else None
    return Found(module, preprocessing, labels, warnings, "image", size_px=size)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(f"'{folder}' has no config.json", "a folder saved by save_pretrained", "check the path")
    try:
        if (folder / "config.json").stat().st_size > _CONFIG_LIMIT:
            raise ValueError("too large")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"'{folder}/config.json' cannot be read ({error})", "JSON", "save the model again") from error
    if not isinstance(config, dict):
        raise BadInput(f"'{folder}/config.json' is no JSON object", "a configuration", "save the model again")
    for file in folder.glob("*.safetensors"):
        check_safetensors_header(file)


def _task(config: Any, name: str) -> str:
    architectures = list(getattr(config, "architectures", None) or [])
    for architecture in architectures:
        for ending, task in _TASKS.items():
            if str(architecture).endswith(ending):
                return task
    raise BadInput(
        f"'hf:{name}' is {', '.join(map(str, architectures)) or 'of no stated architecture'}",
        "image classification, sequence classification, or a causal or masked language model",
        "pick a model with such a head",
    )


def _check_size(builder: Any, config: Any, name: str) -> None:
    """Refuse a network that does not fit in memory, before any of it is allocated."""
    import psutil

    try:
        with torch.device("meta"):
            skeleton = builder.from_config(config, trust_remote_code=False)
    except Exception as error:  # a configuration can break a constructor in any way
        raise _unreachable(name, error) from error
    needed = 4 * sum(parameter.numel() for parameter in skeleton.parameters())
    available = psutil.virtual_memory().available
    if needed > available:
        raise BadInput(
            f"'hf:{name}' needs {needed / 2**30:.1f} GiB",
            f"at most {available / 2**30:.1f} GiB here",
            "use a smaller one",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars of transformers off the terminal while the block runs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _loaded(
    builder: Any,
    config: Any,
    source: str,
    weights: Weights,
    name: str,
) -> tuple[nn.Module, tuple[str, ...]]:
    options = {"config": config, "trust_remote_code": False, "dtype": torch.float32}
    if weights is not None:
        with seeded():
            module = builder.from_config(config, trust_remote_code=False)
        if weights == RANDOM:
            return module, (RANDOM_WARNING,)
        return fit_weights(module, load_weights(Path(weights)), source=f"the weights in '{weights}'"), ()
    binary = Path(source) / "pytorch_model.bin"
    if Path(source).is_dir() and not list(Path(source).glob("*.safetensors")):
        if not binary.is_file():
            raise BadInput(f"'{source}' has no weights", "model.safetensors", "save the model there, or pass --weights")
        module = builder.from_config(config, trust_remote_code=False)
        return fit_weights(module, load_weights(binary), source=f"the weights in '{binary}'"), ()
    try:
        module, notes = builder.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    except OSError as error:
        if Path(source).is_dir():
            raise _unreachable(name, error) from error
        module = builder.from_config(config, trust_remote_code=False)
        return fit_weights(module, load_weights(_downloaded(source, name)), source=f"the weights of '{name}'"), ()
    except Exception as error:  # damaged files raise what the libraries below raise
        raise _unreachable(name, error) from error
    lost = [*map(str, notes["missing_keys"]), *map(str, notes["mismatched_keys"])]
    if lost:
        raise BadInput(
            f"the weights of 'hf:{name}' lack {', '.join(sorted(lost)[:_SHOWN])} ({len(lost)} in all)",
            "weights for this head",
            "pick a model that was trained for the task, or pass --weights FILE",
        )
    extra = sorted(map(str, notes["unexpected_keys"]))
    return module, ((f"weights not used: {', '.join(extra[:_SHOWN])} ({len(extra)} in all)",) if extra else ())


def _downloaded(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "pytorch_model.bin"))
    except Exception as error:  # hub and network errors have no common base
        raise _unreachable(name, error) from error


def _processor(source: str) -> dict[str, Any] | None:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(source)[0])
    except OSError:
        return None  # the model has no image processor: its preprocessing is assumed, and the result says so


def _remote_code(name: str) -> BadInput:
    return BadInput(
        f"'hf:{name}' needs code from its own repository (auto_map)",
        "a model that transformers knows",
        "write a factory that builds it and pass package.module:factory",
    )


def _unreachable(name: str, error: Exception) -> BadInput:
    if "trust_remote_code" in str(error):
        return _remote_code(name)
    reason = " ".join(str(error).split())[:160]
    return BadInput(
        f"'hf:{name}' cannot be loaded ({type(error).__name__}: {reason})",
        "a local folder saved by save_pretrained, or a repository that can be downloaded",
        "check the name and the network, or pass a local folder",
    )
