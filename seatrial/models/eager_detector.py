"""Detectors that run as they are: torchvision's, which do not export whole, and any callable."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from seatrial.core.alter_module import altered_module
from seatrial.core.graph import widened
from seatrial.core.noise import Boxes, System
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.task import LabelMap
from seatrial.errors import BadInput, NotApplicable, missing_extra, unknown_name
from seatrial.models.checkpoint import fit_weights, load_weights
from seatrial.models.names import RANDOM, RANDOM_WARNING, Weights, from_factory, seeded

Finds = Sequence[Mapping[str, Tensor]]


@final
@dataclass(frozen=True, eq=False)
class EagerDetector(Predictor):
    """A callable from a list of pictures (float32 CHW RGB in [0, 1]) to what it found in each, a mapping.

    The mapping holds `boxes` (x1, y1, x2, y2 in pixels of the picture), `scores` and `labels`, and `masks` where the
    detector segments: what `Detection` reads as `listed`.
    """

    detect: Callable[[list[Tensor]], Finds]
    device: str = "cpu"
    arithmetic: Literal["as-is", "bf16", "fp16"] = "as-is"

    @property
    def gives(self) -> frozenset[Gift]:
        """Nothing that an attack could use: finds are no scores of classes."""
        return frozenset()

    def __call__(self, inputs: Inputs) -> list[dict[str, Tensor]]:
        """Return the finds of each picture; raises BadInput where the callable does not give any."""
        if not isinstance(inputs, Tensor):
            raise BadInput(f"inputs named {', '.join(inputs)} for a detector", "pictures", "pass an image data set")
        narrow = torch.float16 if self.arithmetic == "fp16" else torch.bfloat16
        mixed = torch.autocast(self.device.split(":")[0], dtype=narrow, enabled=self.arithmetic != "as-is")
        with torch.no_grad(), mixed:
            found: Any = self.detect(list(inputs.to(self.device)))
        if not isinstance(found, Sequence) or not all(isinstance(entry, Mapping) for entry in found):
            raise BadInput(
                f"a detector that gives a {type(found).__name__}",
                "a list with a mapping of boxes, scores and labels for each picture",
                "wrap it in a function that returns them",
            )
        return [{name: widened(part.detach().cpu()) for name, part in entry.items()} for entry in found]

    def alter(self, system: System) -> EagerDetector:
        """Return the detector in another system, for `seatrial.bench.plan.Subject`: operators, arithmetic and boxes.

        Operators are those of its backbone, or of all its modules (see `altered_module`); narrow floats are mixed
        precision. Raises NotApplicable for integers, and where a function would have to be altered.
        """
        if system.arithmetic == "int8":
            raise NotApplicable("an eager detector has no integers: it is not exported")
        found = self.under(system.boxes)
        if system.graph:
            if not isinstance(found.detect, nn.Module):
                raise NotApplicable("the operators of a function cannot be changed from outside")
            found = replace(found, detect=altered_module(found.detect, system.graph))
        return replace(found, arithmetic=system.arithmetic)

    def under(self, boxes: Boxes) -> EagerDetector:
        """Return the detector with its boxes decoded as `boxes` says; raises NotApplicable where it cannot be.

        Every decoding of torchvision's box coders is altered, that of proposals included, in the pixels of the size
        that the detector works at. Source: SysNoise (Wang et al. 2023), appendix A, "detection proposal".
        """
        if boxes == "as-trained":
            return self
        if boxes == "everywhere":
            raise NotApplicable("overlaps and areas of an eager detector cannot be changed from outside")
        if not isinstance(self.detect, nn.Module):
            raise NotApplicable("how a function decodes its boxes cannot be changed from outside")
        twin = copy.deepcopy(self.detect)
        owners = [module for module in twin.modules() if hasattr(module, "box_coder")]
        if not owners:
            raise NotApplicable(f"{type(twin).__name__} has no box coder of torchvision")
        for module in owners:
            setattr(module, "box_coder", _NearerCorner(module.box_coder))  # noqa: B010  (not known to nn.Module)
        return replace(self, detect=twin)


@final
class _NearerCorner:
    """A box coder whose decoded far corners are the last pixels, not the edges behind them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # asked for by copy before it is there
            raise AttributeError(name)
        return getattr(self._inner, name)

    def decode(self, *args: Any) -> Tensor:
        return _nearer(self._inner.decode(*args))

    def decode_single(self, *args: Any) -> Tensor:
        return _nearer(self._inner.decode_single(*args))


def _nearer(boxes: Tensor) -> Tensor:
    corners = boxes.reshape(*boxes.shape[:-1], boxes.shape[-1] // 4, 4)
    return (corners - corners.new_tensor([0, 0, 1, 1])).reshape(boxes.shape)


@final
@dataclass(frozen=True, eq=False)
class OpenedDetector:
    """A detector that was opened: what it answers and what its labels mean; `digest` is the hash of its tensors."""

    name: str
    source: str
    predictor: EagerDetector
    labels: LabelMap
    masks: bool
    digest: str
    warnings: tuple[str, ...] = ()


def open_detector(name: str, *, weights: Weights = None, n_classes: int | None = None) -> OpenedDetector:
    """Open `torchvision:NAME` (a detector or instance segmenter) or `package.module:factory` (runs that code).

    weights: a file, the word `random`, or None for the published ones of torchvision (downloaded) and for what a
    factory brings. `n_classes` counts classes without the background, which torchvision puts first.
    Raises BadInput for an unknown name, weights that do not fit, and where a download fails.
    """
    prefix, _, rest = name.partition(":")
    warnings: tuple[str, ...] = ()
    if prefix == "torchvision":
        module, labels, warnings = _from_torchvision(rest, weights, n_classes)
    else:
        module, labels = from_factory(name).module, LabelMap()
        if weights == RANDOM:
            warnings = ("weights as the network was built",)
        elif weights is not None:
            module = fit_weights(module, load_weights(Path(weights)), source=f"the weights in '{weights}'")
    module = module.eval()
    masks = getattr(getattr(module, "roi_heads", None), "mask_predictor", None) is not None
    return OpenedDetector(rest, name, EagerDetector(module), labels, masks, _digest(module), warnings)


def _from_torchvision(
    name: str, weights: Weights, n_classes: int | None
) -> tuple[nn.Module, LabelMap, tuple[str, ...]]:
    try:
        from torchvision import models
    except ImportError as error:
        raise missing_extra("torchvision", "vision", f"torchvision:{name}") from error
    known = [entry for entry in models.list_models(module=models.detection) if "keypoint" not in entry]
    if name not in known:
        raise unknown_name("torchvision detector", name, known)
    choices: Any = models.get_model_weights(name)
    published = choices.DEFAULT
    names = tuple(published.meta["categories"])
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if n_classes is not None and n_classes + 1 != len(names):
        options["num_classes"], names = n_classes + 1, ()
    labels = LabelMap(names[1:], background=1, rule="COCO classes, as torchvision's detectors" if names else "given")
    if weights == RANDOM:
        with seeded():
            return models.get_model(name, **options), labels, (RANDOM_WARNING,)
    module = models.get_model(name, **options)
    if weights is not None:
        return fit_weights(module, load_weights(Path(weights)), source=f"the weights in '{weights}'"), labels, ()
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # network and file errors have no common base
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"the weights of 'torchvision:{name}' cannot be downloaded ({type(error).__name__}: {reason})",
            "a network connection, or weights that are here",
            "pass --weights FILE",
        ) from error
    return fit_weights(module, tensors), labels, ()


def _digest(module: nn.Module) -> str:
    digest = hashlib.blake2b(type(module).__qualname__.encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
