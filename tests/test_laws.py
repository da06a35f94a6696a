"""Every method that the catalogue names, run through the laws of its abstraction.

A new method adds one row here: what to build, by family and name. The laws below then hold for it, or it is no method
of that family.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seatrial import catalogue
from seatrial.core.chance import generator
from seatrial.core.graph import Graph, GraphPredictor, Normalization, capture
from seatrial.core.noise import Attack, Corruption, System, SystemNoise
from seatrial.core.pipeline import Letterbox, Pipeline, Resize
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.predictor import Inputs
from seatrial.core.quantizer import Quantizer
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe
from seatrial.core.search import Search
from seatrial.core.sites import Site, signature
from seatrial.core.target import Target
from seatrial.errors import NoNoise, NotApplicable
from seatrial.noise.ball import budget
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.numerics.ranges import Observed, Range, grid_for
from seatrial.quant.placement import place
from seatrial.quant.qat import WEIGHTED_ONLY, QatMethod, placed, prepare
from seatrial.train.objective import Objective
from seatrial.train.tent import Tent

SEVERITIES = (1, 2, 3, 4, 5)
SYSTEM = System(Pipeline((32, 32), Resize(short_side_px=36), letterbox=Letterbox(value=114)))
UNSIGNED = PlacementRules("unsigned", "unsigned", operator_outputs=True)
BY_RANGE = PlacementRules("by range", "by-range", operator_outputs=False)


def nudged(module: nn.Module, inputs: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
    """An attack for adversarial training: one random step."""
    return (inputs + 0.01 * torch.from_numpy(rng.standard_normal(inputs.shape, dtype=np.float32))).clamp(0, 1)


# (family, name): the options to run it with; for a system noise also the one field that it may change.
Options = Mapping[str, Any]
ROWS: dict[tuple[str, str], tuple[Options, ...]] = {
    **{
        ("corruption", name): tuple({"severity": severity} for severity in SEVERITIES)
        for name in (
            *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur"),
            *("motion_blur", "zoom_blur", "snow", "frost", "fog", "spatter", "brightness", "contrast", "saturate"),
            *("elastic_transform", "pixelate", "jpeg_compression"),
        )
    },
    ("corruption", "glass_blur"): tuple(
        {"severity": severity, "mode": mode} for severity in SEVERITIES for mode in ("reference", "clean")
    ),
    ("attack", "fgsm"): (
        {"epsilon": "8/255"},
        {"epsilon": "0.5", "norm": "l2"},
        {"epsilon": "20", "norm": "l1"},
    ),
    ("attack", "pgd"): (
        {"epsilon": "8/255", "steps": 4},
        {"epsilon": "8/255", "steps": 4, "stop_early": True, "random_start": False},
        {"epsilon": "2@224", "steps": 4, "norm": "l2"},
        {"epsilon": "1600@224", "steps": 4, "norm": "l1"},
        {"epsilon": "1600@224", "steps": 4, "norm": "l1", "step": "published"},
    ),
    ("attack", "mim"): (
        {"epsilon": "8/255", "steps": 4},
        {"epsilon": "8/255", "steps": 4, "step": "published", "random_start": False},
        {"epsilon": "2", "steps": 4, "norm": "l2"},
    ),
    ("attack", "apgd_ce"): (
        {"epsilon": "8/255", "steps": 12, "draws": 2},
        {"epsilon": "8", "norm": "l1", "steps": 8, "restarts": 2},
    ),
    ("attack", "apgd_t"): ({"epsilon": "8/255", "steps": 12, "targets": 2},),
    ("attack", "apgd_dlr"): ({"epsilon": "8/255", "steps": 12},),
    ("attack", "fab_t"): ({"epsilon": "0.3", "steps": 12},),
    ("attack", "fab"): ({"epsilon": "0.3", "steps": 12, "restarts": 2},),
    ("attack", "autoattack"): ({"epsilon": "8/255", "steps": 8, "queries": 20},),
    ("attack", "square"): (
        {"epsilon": "8/255", "queries": 20},
        {"epsilon": "2@224", "norm": "l2", "queries": 20},
        {"epsilon": "1600@224", "norm": "l1", "queries": 20},
    ),
    ("attack", "hopskipjump"): (
        {"epsilon": "8/255", "norm": "linf", "queries": 80, "draws": 10},
        {"epsilon": "0.5", "norm": "l2", "queries": 80, "draws": 10},
    ),
    ("system", "resize"): (
        *({"option": option} for option in ("opencv-bilinear", "pillow-lanczos", "torch-bicubic-antialias")),
        {"option": "pillow-bilinear"},
    ),
    ("system", "decoder"): tuple({"option": option} for option in ("opencv", "pyav", "camera-yuv", "pillow")),
    ("system", "color"): tuple({"option": option} for option in ("yuv444-exact", "nv12-integer")),
    ("system", "exif"): ({"option": "ignored"},),
    ("system", "letterbox"): tuple({"option": option} for option in ("0", "114", "centered", "stretched")),
    ("system", "precision"): ({"option": "fp16"}, {"option": "bf16"}, {"option": "int8"}),
    ("system", "ceil_mode"): ({"option": "ceil"}, {"option": "floor"}),
    ("system", "upsample"): ({"option": "nearest"}, {"option": "bilinear"}),
    ("system", "align_corners"): ({"option": "flipped"},),
    ("system", "box_offset"): ({"option": "decode"}, {"option": "everywhere"}),
    ("quantizer", "nearest"): (
        {},
        {"bias_correction": False, "equalization": "none"},
        {"equalization": "cross-layer"},
    ),
    ("quantizer", "os-plus"): ({}, {"objective": "layers"}),
    ("quantizer", "smooth-quant"): ({},),
    ("quantizer", "outlier-suppression"): ({},),
    ("quantizer", "ptq4vit"): ({}, {"twin": False, "rounds": 1}),
    ("quantizer", "repq-vit"): ({}, {"logarithmic": False}),
    ("quantizer", "apq-vit"): ({"rounds": 1}, {"rounds": 1, "softmax": "preserving", "inputs": "float"}),
    ("quantizer", "gptq"): ({}, {"act_order": False, "search": None}),
    ("quantizer", "awq"): ({}, {"steps": 5, "gated": False}),
    ("qat", "dorefa"): ({}, {"clip": 1.0}),
    ("qat", "pact"): ({},),
    ("qat", "lsq"): ({},),
    ("mitigation", "mix"): ({},),
    ("mitigation", "augmix"): ({}, {"agreement": 0.0}),
    ("mitigation", "adversarial"): ({"attack": nudged}, {"attack": nudged, "clean": 0.5}),
    ("mitigation", "tent"): ({},),
    ("ranges", "minmax"): ({},),
    ("ranges", "percentile"): ({},),
    ("ranges", "mse"): ({},),
    ("ranges", "moving-average"): ({},),
    ("ranges", "token-wise"): ({}, {"ratio": 0.1}),
    ("target", "torch"): ({},),
    ("target", "onnxruntime"): ({},),
    ("target", "openvino"): ({},),
    ("target", "litert"): ({},),
    ("target", "systolic"): ({}, {"rows": 8, "columns": 4}),
    ("search", "ohq"): (),  # its laws: tests/test_quant_ohq.py
}
ALTERS = {
    "resize": "pipeline.resize",
    "decoder": "pipeline.decoder",
    "color": "pipeline.color",
    "exif": "pipeline.exif",
    "letterbox": "pipeline.letterbox",
    "precision": "arithmetic",
    **dict.fromkeys(("ceil_mode", "upsample", "align_corners"), "graph"),
    "box_offset": "boxes",
}
NAMED = {
    ("exif", "ignored"): False,
    ("letterbox", "0"): Letterbox(value=0),
    ("letterbox", "centered"): Letterbox(value=114, centered=True),
    ("letterbox", "stretched"): Letterbox(value=114, keep_ratio=False),
    ("ceil_mode", "ceil"): ("ceil_mode",),
    ("ceil_mode", "floor"): ("floor_mode",),
    ("upsample", "nearest"): ("upsample:nearest",),
    ("upsample", "bilinear"): ("upsample:bilinear",),
    ("align_corners", "flipped"): ("align_corners",),
}
"""What the one field becomes, where that is not the option itself."""


def rows(family: str) -> list[Any]:
    """Return one test case for each row and its options."""
    return [
        pytest.param(
            name, options, id="-".join([name, *(str(getattr(value, "__name__", value)) for value in options.values())])
        )
        for (of, name), choices in ROWS.items()
        if of == family
        for options in choices
    ]


def test_every_method_of_the_catalogue_has_a_row() -> None:
    assert {(entry.family, entry.name) for entry in catalogue.ENTRIES} == set(ROWS)


@pytest.mark.parametrize("entry", catalogue.ENTRIES, ids=lambda entry: f"{entry.family}-{entry.name}")
def test_every_method_is_of_its_family_and_final(entry: catalogue.Entry) -> None:
    kinds = {
        "corruption": Corruption,
        "attack": Attack,
        "system": SystemNoise,
        "quantizer": Quantizer,
        "qat": QatMethod,
        "mitigation": (Objective, Tent),
        "ranges": Range,
        "search": Search,
        "target": Target,
    }
    method = catalogue.load(entry)
    assert issubclass(method, kinds[entry.family])
    assert not getattr(method, "__abstractmethods__", None)
    assert entry.paper
    assert method.__doc__
    assert not method.__subclasses__()


# Corruptions


def photograph(height: int, width: int) -> np.ndarray:
    """Return a smooth picture with some texture, uint8 RGB."""
    rng = generator(0, "photograph", height, width)
    coarse = torch.from_numpy(rng.random((1, 3, 5, 5)))
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    texture = 0.05 * rng.standard_normal((height, width, 3))
    return (np.clip(smooth.permute(1, 2, 0).numpy() + texture, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (48, 31)], ids=str)
@pytest.mark.parametrize(("name", "options"), rows("corruption"))
def test_corruption(name: str, options: Options, size: tuple[int, int]) -> None:
    corruption: Corruption = catalogue.make("corruption", name, **options)
    picture = photograph(*size)
    kept = picture.copy()
    picture.setflags(write=False)
    first = corruption.corrupt(picture, rng=generator(0, name))
    assert first.shape == (*size, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(picture, kept)
    assert not np.array_equal(first, kept)
    assert not np.shares_memory(first, picture)
    assert np.array_equal(corruption.corrupt(picture, rng=generator(0, name)), first)
    twin: Corruption = catalogue.make("corruption", name, **options)
    assert np.array_equal(twin.corrupt(picture, rng=generator(0, name)), first)


# Attacks


class Classifier(nn.Module):
    """A small convolutional network with batch norm, residual, gate, pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu_()
        y = self.point(self.depthwise(x).relu())
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid() + x
        return self.head(y.relu().mean((2, 3)))


@pytest.fixture(scope="module")
def module() -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    with torch.no_grad():
        model.head.weight.mul_(20)  # margins that an attack must work for
    model(torch.rand(16, 3, 12, 12))
    return model.eval()


@pytest.fixture(scope="module")
def graph(module: Classifier) -> Graph:
    return capture(module, torch.rand(2, 3, 12, 12), normalization=Normalization((0.5,) * 3, (0.25,) * 3))


def batch(seed: int, count: int = 6) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return everything that an audit must leave as it was."""
    return {
        "tensors": {name: value.clone() for name, value in module.state_dict().items()},
        "modes": [(name, part.training) for name, part in module.named_modules()],
        "gradients": {name: copy.copy(value.grad) for name, value in module.named_parameters()},
        "wanted": [(name, value.requires_grad) for name, value in module.named_parameters()],
        "hooks": [bool(part._forward_hooks or part._forward_pre_hooks) for part in module.modules()],
    }


def assert_untouched(module: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(module)
    for part in ("modes", "wanted", "hooks"):
        assert after[part] == before[part]
    for part in ("tensors", "gradients"):
        assert after[part].keys() == before[part].keys()
        for name, value in after[part].items():
            was = before[part][name]
            assert value is was or torch.equal(value, was), f"{part} of {name}"


class RowByRow(GraphPredictor):
    """A graph asked for one sample at a time: some kernels sum a row otherwise where it stands elsewhere in a batch."""

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        if not len(inputs):
            return super().__call__(inputs)
        return torch.cat([super(RowByRow, self).__call__(row.clone()) for row in inputs.split(1)])


@pytest.mark.parametrize(("name", "options"), rows("attack"))
def test_attack(name: str, options: Options, graph: Graph) -> None:
    attack: Attack = catalogue.make("attack", name, **options)
    predictor = RowByRow(graph)
    assert attack.needs <= predictor.gives
    inputs = batch(1)
    inputs[0], inputs[1, :, :6] = 0.0, 1.0  # the walls of the box
    labels = predictor(inputs).argmax(1)
    labels[2] = (labels[2] + 1) % 4  # one that is misclassified already
    kept, kept_labels, before = inputs.clone(), labels.clone(), state_of(graph.module)

    def run(rows: list[int]) -> tuple[Tensor, np.ndarray, np.ndarray]:
        found = attack.perturb(predictor, inputs[rows], labels[rows], rng=[generator(0, name, row) for row in rows])
        return found.inputs, found.zero_gradient, found.queries

    found, zeros, queries = run(list(range(6)))
    assert found.dtype == torch.float32
    assert found.shape == inputs.shape
    assert not found.requires_grad
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    norm = options.get("norm", "linf")
    moved = (found.double() - inputs.double()).flatten(1)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    epsilon = budget(norm, options["epsilon"], inputs.shape[1:])
    assert float(torch.linalg.vector_norm(moved, ord=order, dim=1).max()) <= epsilon
    assert not torch.equal(found, inputs)
    assert len(zeros) == len(queries) == 6
    assert (queries >= 1).all()
    assert torch.equal(inputs, kept)
    assert torch.equal(labels, kept_labels)
    assert_untouched(graph.module, before)
    again = run(list(range(6)))
    assert torch.equal(again[0], found)
    order = [3, 0, 5, 1, 4, 2]
    shuffled, _, shuffled_queries = run(order)
    assert torch.equal(shuffled, found[order])
    assert np.array_equal(shuffled_queries, queries[order])


# System noises


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return the fields of a system by their path, down to the level that a noise names."""
    if isinstance(value, System | Pipeline):
        parts = [leaves(getattr(value, part.name), f"{name}.{part.name}".strip(".")) for part in fields(value)]
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {name: value}


@pytest.mark.parametrize(("name", "options"), rows("system"))
def test_system_noise(name: str, options: Options) -> None:
    noise: SystemNoise = catalogue.make("system", name, **options)
    before = leaves(SYSTEM)
    try:
        altered = noise.alter(SYSTEM)
    except NoNoise:
        assert options["option"] in ("pillow", "pillow-bilinear", "114")  # what SYSTEM does already
        return
    finally:
        assert leaves(SYSTEM) == before
    changed = {key for key, value in leaves(altered).items() if value != before[key]}
    assert changed == {ALTERS[name]}
    if name == "resize":
        assert altered.pipeline.resize is not None
        library, _, interpolation = options["option"].partition("-")
        assert altered.pipeline.resize == Resize(short_side_px=36, library=library, interpolation=interpolation)
    else:
        assert leaves(altered)[ALTERS[name]] == NAMED.get((name, options["option"]), options["option"])
    with pytest.raises(NoNoise):
        noise.alter(altered)


# Quantizers and ranges


def planned(graph: Graph, quantizer: Quantizer, wanted: Mapping[Site, Precision]) -> Recipe:
    return quantizer.plan(graph, [batch(5), batch(6)], wanted, rng=generator(0, "plan"))


def asked(graph: Graph) -> dict[Site, Precision]:
    """Return sites at several widths, signs and grids, as a placement asks for them."""
    precision = place(graph, UNSIGNED, Bits(4, 8)) | place(graph, BY_RANGE, Bits(8, 16))
    return {site: replace(wanted, tie=None) for site, wanted in precision.items()}


@pytest.mark.parametrize("rules", [UNSIGNED, BY_RANGE], ids=lambda rules: rules.name)
@pytest.mark.parametrize(("name", "options"), rows("quantizer"))
def test_quantizer(name: str, options: Options, rules: PlacementRules, module: Classifier) -> None:
    audited = copy.deepcopy(module).train()
    audited.norm.eval()
    audited.head.weight.requires_grad_(False)
    audited(batch(0)).sum().backward()
    before = state_of(audited)
    graph = fold_batch_norm(capture(audited, batch(0), normalization=Normalization((0.5,) * 3, (0.25,) * 3)))
    of_graph, code = state_of(graph.module), graph.module.code
    quantizer: Quantizer = catalogue.make("quantizer", name, **options)
    wanted = place(graph, rules, Bits(8, 8))
    calibration = [batch(5), batch(6)]
    kept = [inputs.clone() for inputs in calibration]
    recipe = quantizer.plan(graph, calibration, wanted, rng=generator(0, name))
    assert_untouched(audited, before)
    assert_untouched(graph.module, of_graph)
    assert graph.module.code == code
    assert all(torch.equal(one, other) for one, other in zip(calibration, kept, strict=True))
    # Exactly the sites asked for, or a note.
    rounded = [edit.site for edit in recipe.rounds]
    assert len(set(rounded)) == len(rounded)
    assert set(rounded) <= set(wanted)
    for site in set(wanted) - set(rounded):
        assert any(site.operator in note for note in recipe.notes)
    assert recipe.signature == signature(graph)
    for edit in recipe.rounds:
        assert isinstance(edit.grid, Affine)
        low, high = edit.grid.codes
        assert bool(((low <= edit.grid.zero_point) & (edit.grid.zero_point <= high)).all()), f"no zero at {edit.site}"
        assert bool((edit.grid.scale > 0).all() & edit.grid.scale.isfinite().all())
        assert edit.grid.bits == wanted[edit.site].bits
        assert edit.grid.axis == wanted[edit.site].axis
        assert wanted[edit.site].signed in (None, edit.grid.signed)
    # Near the float graph, and the simulation is a graph like any other.
    with torch.no_grad():
        simulated, plain = realise(graph, recipe).module(batch(7)), graph.module(batch(7))
    assert float((simulated - plain).norm() / plain.norm()) < 0.1
    assert_untouched(graph.module, of_graph)


@pytest.mark.parametrize(("name", "options"), rows("quantizer"))
def test_a_quantizer_is_deterministic(name: str, options: Options, graph: Graph, tmp_path: Path) -> None:
    wanted = asked(graph)
    files = []
    for attempt in ("first", "second"):
        quantizer: Quantizer = catalogue.make("quantizer", name, **options)
        files.append([file.read_bytes() for file in planned(graph, quantizer, wanted).save(tmp_path / attempt)])
    assert files[0] == files[1]


@pytest.mark.parametrize(("name", "options"), rows("quantizer"))
def test_a_quantizer_rounds_what_it_is_asked_for_alone(name: str, options: Options, graph: Graph) -> None:
    everything = asked(graph)
    quantizer: Quantizer = catalogue.make("quantizer", name, **options)
    assert planned(graph, quantizer, {}).rounds == ()
    for site in list(everything)[:4]:
        assert [edit.site for edit in planned(graph, quantizer, {site: everything[site]}).rounds] == [site]


# Training


@pytest.mark.parametrize(("name", "options"), rows("qat"))
def test_qat(name: str, options: Options, graph: Graph) -> None:
    method: QatMethod = catalogue.make("qat", name, **options)
    before, code = state_of(graph.module), graph.module.code
    precision = placed(graph, WEIGHTED_ONLY, Bits(4, 4))
    prepared = prepare(method, graph, [batch(5), batch(6)], precision)
    twin = prepare(method, graph, [batch(5), batch(6)], precision)
    assert set(prepared.rounds) == set(precision)
    float_graph, recipe = prepared.converted()
    assert {edit.site for edit in recipe.rounds} == set(precision)
    assert recipe.signature == signature(float_graph)
    for edit in recipe.rounds:
        assert isinstance(edit.grid, Affine)
        assert edit.grid.bits == precision[edit.site].bits
    with torch.no_grad():
        assert torch.equal(prepared.module(batch(7)), twin.module(batch(7)))
    loss = nn.functional.cross_entropy(prepared.module(batch(7)), torch.arange(6) % 4) + method.penalty(prepared.module)
    loss.backward()
    gradients = [value.grad for value in prepared.module.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert_untouched(graph.module, before)
    assert graph.module.code == code


@pytest.mark.parametrize(("name", "options"), rows("mitigation"))
def test_mitigation(name: str, options: Options, module: Classifier, graph: Graph) -> None:
    mitigation: Objective | Tent = catalogue.make("mitigation", name, **options)
    if isinstance(mitigation, Tent):
        before = state_of(graph.module)
        predictor, inputs = mitigation.adapting(graph), batch(3)
        first = predictor(inputs)
        assert not torch.equal(first, graph.module(inputs))
        assert torch.equal(predictor(inputs), first)
        assert torch.equal(inputs, batch(3))
        assert_untouched(graph.module, before)
        return
    learning, inputs, labels = copy.deepcopy(module).train(), batch(3), torch.arange(6) % 4
    learning.head.eval()
    given = (torch.stack([inputs, inputs.flip(3)], 1) * 255).byte() if name == "mix" else inputs
    kept, before = given.clone(), state_of(learning)
    twin = copy.deepcopy(learning)
    loss = mitigation.loss(learning, given, labels, rng=generator(0, name))
    assert torch.equal(mitigation.loss(twin, given, labels, rng=generator(0, name)), loss)
    assert torch.equal(given, kept)
    after = state_of(learning)
    assert after["modes"] == before["modes"]
    assert all(torch.equal(after["tensors"][key], before["tensors"][key]) for key, _ in learning.named_parameters())
    loss.backward()
    assert loss.ndim == 0
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in learning.parameters())


@pytest.mark.parametrize("values", ["both signs", "positive", "negative", "zero"])
@pytest.mark.parametrize(("name", "options"), rows("ranges"))
def test_a_range_lies_in_what_was_seen_and_its_grid_holds_zero(name: str, options: Options, values: str) -> None:
    ranges: Range = catalogue.make("ranges", name, **options)
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    shape: dict[str, Callable[[Tensor], Tensor]] = {
        "both signs": lambda x: x,
        "positive": lambda x: x.abs() + 1,
        "negative": lambda x: -x.abs() - 1,
        "zero": torch.zeros_like,
    }
    observed = Observed(counted=True, by_token=True)
    for part in shape[values](x).chunk(3):
        observed.see(part)
    seen = shape[values](x)
    for precision in (Precision(8), Precision(4, signed=True, symmetric=True), Precision(8, signed=True)):
        low, high = ranges.choose(observed, precision)
        # Within what was seen and zero: clipping moves an end towards zero, never past it.
        assert min(float(seen.min()), 0.0) - 1e-6 <= low <= high <= max(float(seen.max()), 0.0) + 1e-6
        assert (low, high) == ranges.choose(observed, precision)
        grid = grid_for(low, high, precision)
        lowest, highest = grid.codes
        assert lowest <= int(grid.zero_point) <= highest
        assert float(grid.scale) > 0
        # What the range holds is not cut off, but for half a step that the zero point was moved by.
        ends = torch.tensor([lowest, highest]).sub(grid.zero_point).mul(grid.scale)
        assert float(ends[0]) - 0.51 * float(grid.scale) <= min(low, 0.0)
        assert float(ends[1]) + 0.51 * float(grid.scale) >= max(high, 0.0)


# Targets


@pytest.mark.parametrize("bits", ["float32", "w8a8", "w4a4"])
@pytest.mark.parametrize(("name", "options"), rows("target"))
def test_target(name: str, options: Options, bits: str, graph: Graph, tmp_path: Path) -> None:
    method = catalogue.load(catalogue.find("target", name))
    if not method.installed():
        pytest.skip(f"needs the runtime of the target '{name}'")
    target: Target = catalogue.make("target", name, **options)
    assert target.name == name
    assert "float32" in target.precisions
    folded = fold_batch_norm(graph)
    given = folded
    if bits != "float32":
        quantizer: Quantizer = catalogue.make("quantizer", "nearest")
        given = realise(folded, planned(folded, quantizer, place(folded, target.placement, Bits.parse(bits))))
    before, code = state_of(given.module), given.module.code
    try:
        artefact = target.compile(given, tmp_path / "folder" / f"net.{bits}", bits=bits)
    except NotApplicable:
        assert name == "litert"
        return
    assert_untouched(given.module, before)
    assert given.module.code == code
    assert artefact.bits == bits
    assert all(file.is_file() for file in artefact.files)
    assert artefact.size_bytes == sum(file.stat().st_size for file in artefact.files)
    predictor = target.open(artefact, threads=1)
    inputs = batch(9)
    kept = inputs.clone()
    answers = predictor(inputs)
    simulation = target.simulated(given)
    assert_untouched(given.module, before)
    assert given.module.code == code
    with torch.no_grad():
        wanted = simulation.module(inputs)
        written = given.module(inputs)
    # The simulation to round-off, the file's own meaning to a flipped code here and there; few codes are coarse.
    assert float((answers - wanted).norm() / wanted.norm()) < {"float32": 1e-5, "w8a8": 1e-5, "w4a4": 0.1}[bits]
    assert float((answers - written).norm() / written.norm()) < {"float32": 1e-5, "w8a8": 0.01, "w4a4": 0.1}[bits]
    assert torch.equal(inputs, kept)
    assert answers.dtype == torch.float32
    assert not answers.requires_grad
    assert torch.equal(predictor(inputs), answers)
    assert predictor(inputs[:1]).shape == (1, 4)
    predictor.close()
