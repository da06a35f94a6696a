"""What came in: a model as a captured graph, or a deployed file as it is."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn

from seatrial.core.graph import Graph, capture, from_program, with_normalization
from seatrial.core.pipeline import Pipeline
from seatrial.core.sites import shape_of, signature
from seatrial.core.task import LabelMap
from seatrial.errors import BadInput, unknown_name
from seatrial.models.artefact import ArtefactModel, open_artefact
from seatrial.models.checkpoint import fit_weights, load_weights, matched
from seatrial.models.hugging_face import from_hugging_face
from seatrial.models.labels import labels_of_names, labels_of_text, read_classes
from seatrial.models.names import RANDOM, Found, Weights, from_factory, from_module, from_timm, from_torchvision
from seatrial.models.preprocessing import Overrides, Preprocessing, assumed, config_beside, of_json, overridden
from seatrial.models.program import open_program

_LENGTH = 8
_DEFAULT_SIZE = (224, 224)
_FORMS = "timm:NAME, torchvision:NAME, hf:REPO_OR_FOLDER, FILE.pt2, FILE.onnx, FILE.tflite or package.module:factory"


@dataclass(frozen=True, eq=False)
class Model:
    """A network that was opened: its graph takes float32 RGB in [0, 1], or token ids.

    `module` is the eager original, untouched (None for a `.pt2`, which cannot be trained); `pipeline` is None for a
    text model. `source` is what the user named, `digest` the hash of all parameters, buffers and operators.
    """

    name: str
    source: str
    graph: Graph
    pipeline: Pipeline | None
    labels: LabelMap
    module: nn.Module | None
    digest: str
    warnings: tuple[str, ...] = ()
    kind: Literal["image", "text"] = "image"

    @property
    def n_outputs(self) -> int | None:
        """The number of outputs per sample, background included; None where the graph does not end in [batch, N]."""
        return output_count(self.graph)

    @property
    def picture_pipeline(self) -> Pipeline:
        """The pipeline of an image model; raises BadInput for a text model."""
        if self.pipeline is None:
            raise BadInput(f"'{self.name}' is a text model", "an image model", "pass an image classifier")
        return self.pipeline


def is_artefact(name: str | Path | nn.Module) -> bool:
    """Return whether a model as `open_model` takes it is a deployed file."""
    return not isinstance(name, nn.Module) and Path(name).suffix.lower() in (".onnx", ".tflite")


def open_model(
    name: str | Path | nn.Module,
    *,
    weights: Path | str | None = None,
    input_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    crop: tuple[int, int] | None = None,
    interpolation: str | None = None,
    classes: Path | str | Sequence[str] | None = None,
) -> Model | ArtefactModel:
    """Open a model by name, file, factory, or as an eager module, with its preprocessing and class names.

    name: `timm:NAME`, `torchvision:NAME`, `hf:REPO_OR_FOLDER`, `FILE.pt2`, `package.module:factory` (runs that code, by
    design), a module, or a deployed `FILE.onnx` or `FILE.tflite`. weights: a safetensors file or a checkpoint, or the
    word `random`. input_size and crop are (height, width) in pixels, resize the short side in pixels (0 for none),
    classes a file with one name a line, or the names. What is given wins over the model's own configuration.
    Raises BadInput with what to do.
    """
    chosen: Weights = None if weights is None else RANDOM if weights == RANDOM else Path(weights)
    user = Overrides(mean, std, resize, crop, interpolation, input_size)
    names = read_classes(Path(classes)) if isinstance(classes, str | Path) else tuple(classes) if classes else None
    if isinstance(name, nn.Module):
        found = _refitted(from_module(name), chosen)
        return _captured(type(name).__name__, type(name).__qualname__, found, chosen, user, names)
    text = str(name)
    if is_artefact(text):
        if chosen is not None:
            raise BadInput(f"--weights for '{text}'", "a network without weights of its own", "leave --weights out")
        return open_artefact(Path(text), user, names)
    if Path(text).suffix.lower() == ".pt2":
        return _from_pt2(Path(text), chosen, user, names)
    prefix, _, rest = text.partition(":")
    sources: dict[str, Callable[[str, Weights, tuple[int, int] | None], Found]] = {
        "timm": from_timm,
        "torchvision": from_torchvision,
        "hf": from_hugging_face,
    }
    if prefix in sources and rest:
        found = sources[prefix](rest, chosen, input_size)
        return _captured(rest.rstrip("/").rpartition("/")[2], text, found, chosen, user, names)
    if rest and all(part.isidentifier() for part in (*prefix.split("."), *rest.split("."))):
        return _captured(rest, text, _refitted(from_factory(text), chosen), chosen, user, names)
    raise _unknown(text)


def digest_of(graph: Graph) -> str:
    """Return the hash of a graph's parameters, buffers and operators: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    state = {**dict(graph.module.named_parameters()), **dict(graph.module.named_buffers())}
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update("\n".join(signature(graph)).encode())
    return digest.hexdigest()


def output_count(graph: Graph) -> int | None:
    """Return N for a graph whose output is [batch, N], else None."""
    output = next(node for node in graph.module.graph.nodes if node.op == "output")
    value = output.args[0]
    shape = shape_of(value) if isinstance(value, fx.Node) else ()
    last = shape[1] if len(shape) == 2 else None
    return last if isinstance(last, int) else None


def _refitted(found: Found, weights: Weights) -> Found:
    """Put the user's weights into a copy of an eager module; `random` leaves it as it was built."""
    if weights is None:
        return found
    if weights == RANDOM:
        return dataclasses.replace(found, warnings=(*found.warnings, "weights as the network was built"))
    source = f"the weights in '{weights}'"
    return dataclasses.replace(found, module=fit_weights(found.module, load_weights(Path(weights)), source=source))


def _captured(
    name: str, source: str, found: Found, weights: Weights, user: Overrides, names: Sequence[str] | None
) -> Model:
    if found.kind == "text":
        example = {key: torch.ones(2, _LENGTH, dtype=torch.int64) for key in found.input_names}
        graph = capture(found.module, example)
        labels = labels_of_names(names, output_count(graph), "--classes") if names else found.labels or LabelMap()
        return Model(name, source, graph, None, labels, found.module, digest_of(graph), found.warnings, "text")
    beside = config_beside(weights) if isinstance(weights, Path) and weights.with_suffix(".json").is_file() else None
    preprocessing, size = _preprocessing(found, beside, user)
    warnings = list(found.warnings)
    if found.preprocessing is None and found.size_px is None and user.input_size_px is None and user.crop_px is None:
        warnings.append(f"input size assumed {size[0]}x{size[1]}; pass --input-size")
    preprocessing = overridden(preprocessing, user)
    if preprocessing.pipeline.crop_px != size:
        size = preprocessing.pipeline.crop_px
    graph = capture(found.module, torch.full((2, 3, *size), 0.5), normalization=preprocessing.normalization)
    labels = found.labels
    if beside is not None:
        labels = labels_of_text(beside[0].get("labels"), output_count(graph), Path(str(weights)).parent) or labels
    labels = labels_of_names(names, output_count(graph), "--classes") if names else labels or LabelMap()
    return Model(
        name,
        source,
        graph,
        preprocessing.pipeline,
        labels,
        found.module,
        digest_of(graph),
        (*warnings, *preprocessing.warnings),
    )


def _preprocessing(found: Found, beside: tuple | None, user: Overrides) -> tuple[Preprocessing, tuple[int, int]]:
    """Return the first word on preprocessing: the file beside the weights, the model's own, else what is assumed."""
    own = found.preprocessing.pipeline.crop_px if found.preprocessing else found.size_px
    size = user.input_size_px or own or user.crop_px or _DEFAULT_SIZE
    if beside is not None:
        config, label = beside
        return of_json(config, size, label), size
    if found.preprocessing is not None:
        return found.preprocessing, size
    return assumed(size), size


def _from_pt2(path: Path, weights: Weights, user: Overrides, names: Sequence[str] | None) -> Model:
    program = open_program(path)
    graph = from_program(program)
    warnings: list[str] = []
    if weights == RANDOM:
        raise BadInput(
            "--weights random for a .pt2 file", "a file of weights", "leave --weights out, or name a network"
        )
    if weights is not None:
        fitted = matched(program.state_dict, load_weights(Path(weights)), source=f"the weights in '{weights}'")
        # The graph is ours alone; assigned, because tensors of a program lie on read-only bytes.
        graph.module.load_state_dict(fitted, strict=False, assign=True)
    source, name = str(path.resolve()), path.stem
    if not graph.inputs:
        raise BadInput(f"'{path}' has no inputs", "one picture input, or token ids", "export it so")
    first, *others = graph.inputs
    if others or len(first.shape) != 4:
        if first.dtype != "int64":
            raise BadInput(f"'{path}' with inputs {graph.inputs}", "one picture input, or token ids", "export it so")
        labels = labels_of_names(names, output_count(graph), "--classes") if names else LabelMap()
        return Model(name, source, graph, None, labels, None, digest_of(graph), tuple(warnings), "text")
    batch, channels = first.shape[:2]
    if batch != "batch":
        raise BadInput(f"'{path}' has a fixed batch of {batch}", "a dynamic batch", "export it with Dim.DYNAMIC")
    size = graph.input_size_px
    if channels != 3:
        raise BadInput(f"'{path}' takes {channels} channels", "3 channels (RGB)", "export a model for RGB pictures")
    if user.input_size_px not in (None, size):
        raise BadInput(f"--input-size {user.input_size_px}", f"{size}, which '{path}' is fixed to", "leave it out")
    config, label = config_beside(path) or ({}, "")
    preprocessing = overridden(of_json(config, size, label) if label else assumed(size), user)
    if preprocessing.pipeline.crop_px != size:
        raise BadInput(
            f"a crop of {preprocessing.pipeline.crop_px}", f"{size}, the input of '{path}'", "correct --crop"
        )
    if preprocessing.normalization is not None:
        graph = with_normalization(graph, preprocessing.normalization)
    count = output_count(graph)
    labels = labels_of_names(names, count, "--classes") if names else None
    labels = labels or labels_of_text(config.get("labels"), count, path.parent) or LabelMap()
    notes = (*warnings, *preprocessing.warnings)
    return Model(name, source, graph, preprocessing.pipeline, labels, None, digest_of(graph), notes)


def _unknown(text: str) -> BadInput:
    path = Path(text)
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".th"):
        return BadInput(f"'{text}' holds weights, not a network", _FORMS, f"pass the network and --weights {text}")
    if (path / "config.json").is_file():
        return BadInput(f"'{text}' is a folder", _FORMS, f"did you mean 'hf:{text}'?")
    prefix = text.partition(":")[0]
    if ":" in text:
        return unknown_name("kind of model", prefix, ("timm", "torchvision", "hf"))
    return BadInput(f"unknown model '{text}'", _FORMS, _nearest(text))


def _nearest(text: str) -> str:
    """Return advice for a bare name: the library that has it, or the nearest name."""
    import difflib

    try:
        import timm
    except ImportError:
        return "write the prefix"
    names = timm.list_models()
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    return f"did you mean 'timm:{near[0]}'?" if near else "write the prefix"
