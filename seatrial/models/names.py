"""From a name to a network: `timm:NAME`, `torchvision:NAME`, `package.module:factory`."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seatrial.core.task import LabelMap
from seatrial.errors import BadInput, missing_extra, unknown_name
from seatrial.models.checkpoint import fit_weights, load_weights
from seatrial.models.labels import imagenet_labels
from seatrial.models.preprocessing import Preprocessing, of_timm, of_torchvision

Weights = Path | Literal["random"] | None
RANDOM: Literal["random"] = "random"
RANDOM_WARNING = "random weights (seed 0): accuracy means nothing"


@dataclass(frozen=True)
class Found:
    """An eager network with what its source says about it; None where the source says nothing."""

    module: nn.Module
    preprocessing: Preprocessing | None = None
    labels: LabelMap | None = None
    warnings: tuple[str, ...] = ()
    kind: Literal["image", "text"] = "image"
    input_names: tuple[str, ...] = ()
    """Names of the token inputs of a text model."""
    size_px: tuple[int, int] | None = None


def from_timm(name: str, weights: Weights, size_px: tuple[int, int] | None) -> Found:
    """Build a network of timm; without weights, its pretrained ones are downloaded as timm does it.

    Raises BadInput for an unknown name, for weights that do not fit, and where the download fails.
    """
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise missing_extra("timm", "vision", f"timm:{name}") from error
    if name.split(".")[0] not in set(timm.list_models()):
        raise unknown_name("timm model", name, timm.list_models())

    def build(**options: Any) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=False, **options)
        except RuntimeError as error:  # an unknown tag after the dot
            raise unknown_name("timm model", name, timm.list_pretrained(name.split(".")[0] + ".*")) from error

    def sized(**options: Any) -> nn.Module:
        if size_px is not None:
            # Transformers need their size when they are built; convolutional networks do not know the option.
            with contextlib.suppress(TypeError):
                return build(img_size=size_px, **options)
        return build(**options)

    warnings: tuple[str, ...] = ()
    if weights is None:
        try:
            options: dict[str, Any] = {"img_size": size_px} if size_px is not None else {}
            try:
                module = timm.create_model(name, pretrained=True, **options)
            except TypeError:
                module = timm.create_model(name, pretrained=True)
        except Exception as error:  # hub, network and file errors have no common base
            raise _no_download(f"timm:{name}", error) from error
    else:
        module, warnings = _with_weights(sized, weights)
    config = resolve_model_data_config(module)
    if size_px is not None:
        config = {**config, "input_size": (3, *size_px)}
    labels = None
    tag = str((getattr(module, "pretrained_cfg", None) or {}).get("tag") or "in1k")
    if getattr(module, "num_classes", 0) == 1000 and "in1k" in tag:
        labels = imagenet_labels("ImageNet classes, as timm's networks")
    return Found(module.eval(), of_timm(config), labels, warnings)


def from_torchvision(name: str, weights: Weights, size_px: tuple[int, int] | None) -> Found:
    """Build a classification network of torchvision; without weights, its default ones are downloaded.

    Raises BadInput for an unknown name, for weights that do not fit, and where the download fails.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise missing_extra("torchvision", "vision", f"torchvision:{name}") from error
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    choices: Any = models.get_model_weights(name)
    chosen = choices.DEFAULT if weights is None else next(iter(choices))
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") and weights != RANDOM else {}
    if name in ("googlenet", "inception_v3"):
        quiet["transform_input"] = False

    def build(**options: Any) -> nn.Module:
        if size_px is not None and name.startswith("vit_"):
            options = {"image_size": size_px[0], **options}
        return models.get_model(name, weights=None, **quiet, **options)

    note = ""
    if weights is None:
        try:
            tensors = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # network and file errors have no common base
            raise _no_download(f"torchvision:{name}", error) from error
        transform_input = {"transform_input": True} if "transform_input" in quiet else {}
        module, warnings = fit_weights(build(**transform_input), tensors), ()
    else:
        module, warnings = _with_weights(build, weights)
        note = f"preprocessing of torchvision's {chosen}, as the weights bring none"
    head = [child for child in module.modules() if isinstance(child, nn.Linear | nn.Conv2d)][-1]
    outputs = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    labels = imagenet_labels("ImageNet classes, as torchvision's networks") if outputs == 1000 else None
    return Found(module.eval(), of_torchvision(chosen.transforms(), note), labels, warnings)


def from_factory(name: str) -> Found:
    """Import `package.module`, also from the current folder, and call `factory`: runs that code, by design.

    Raises BadInput where the import fails, the factory is missing, or its result is no network.
    """
    module_name, _, attribute = name.partition(":")
    with _here():
        try:
            factory: object = importlib.import_module(module_name)
        except ImportError as error:
            near = difflib.get_close_matches(module_name, ("timm", "torchvision", "hf"), n=1, cutoff=0.5)
            do = f"did you mean '{near[0]}:{attribute}'?" if near else "check the name and PYTHONPATH"
            raise BadInput(f"'{module_name}' cannot be imported ({error})", "package.module:factory", do) from error
        for part in attribute.split("."):
            known = [entry for entry in dir(factory) if not entry.startswith("_")]
            if not hasattr(factory, part):
                raise unknown_name(f"factory in {module_name}", part, known)
            factory = getattr(factory, part)
        module = factory if isinstance(factory, nn.Module) else factory() if callable(factory) else factory
    if not isinstance(module, nn.Module):
        raise BadInput(f"'{name}' gives a {type(module).__name__}", "a torch.nn.Module", "return the network")
    return from_module(module)


def from_module(module: nn.Module) -> Found:
    """Return what an eager network says about itself: timm's `pretrained_cfg`, or an `image_size` attribute."""
    config = getattr(module, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        from timm.data.config import resolve_model_data_config

        return Found(module, of_timm(resolve_model_data_config(module)))
    settings = getattr(module, "config", None)
    for owner in (module, settings):
        for attribute in ("image_size", "img_size", "input_size"):
            size = getattr(owner, attribute, None)
            if isinstance(size, int) and size > 0:
                return Found(module, size_px=(size, size))
            if isinstance(size, tuple | list) and len(size) >= 2 and all(isinstance(part, int) for part in size):
                return Found(module, size_px=(int(size[-2]), int(size[-1])))
    return Found(module)


def _with_weights(build: Callable[..., nn.Module], weights: Weights) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network with the user's weights, with as many classes as they have."""
    if weights == RANDOM or weights is None:
        with seeded():
            return build(), (RANDOM_WARNING,)
    module = build()
    tensors = load_weights(Path(weights))
    classes = _classes(module, tensors)
    warnings: tuple[str, ...] = ()
    if classes is not None:
        module = build(num_classes=classes)
        warnings = (f"built with {classes} classes, as the weights have",)
    return fit_weights(module, tensors, source=f"the weights in '{weights}'"), warnings


def _classes(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the weights if all that differs from the network is that number."""
    expected = module.state_dict()
    if expected.keys() != tensors.keys():
        return None
    differing = [name for name in expected if expected[name].shape != tensors[name].shape]
    counts = {(expected[name].shape[:1], tensors[name].shape[:1]) for name in differing}
    if not differing or len(counts) != 1 or any(expected[n].shape[1:] != tensors[n].shape[1:] for n in differing):
        return None
    return next(iter(counts))[1][0]


def _no_download(name: str, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:120]
    return BadInput(
        f"the weights of '{name}' cannot be downloaded ({type(error).__name__}: {reason})",
        "a network connection, or weights that are here",
        "pass --weights FILE or a local file",
    )


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed torch's generator while the block runs, so that random weights are the same each time; restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def _here() -> Iterator[None]:
    """Let imports see the current folder while the block runs, as `python -m` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
