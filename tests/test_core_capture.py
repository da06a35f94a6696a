"""Capture: the graph answers as the eager module, which stays as it was; a failure says where and prints nothing."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from seatrial.core.graph import (
    Graph,
    GraphPredictor,
    Normalization,
    capture,
    from_program,
    prepared_copy,
    to_program,
    with_normalization,
)
from seatrial.core.in_place import overwriting
from seatrial.core.sites import attribute, op_name, operators, signature
from seatrial.errors import BadInput

# torch warns about itself while it functionalizes and while it reads files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),
]
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Block(nn.Module):
    """Convolution, batch norm, in-place activation, dropout and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout((self.norm(self.conv(x)) + x).relu_(), 0.5, self.training)


class Net(nn.Module):
    """A small residual network; `inner_blocks` begins like the wrapper of capture names its own child."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner_blocks = nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner_blocks(self.stem(x)).mean((2, 3)))


def pictures(batch: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(pictures(8))  # batch norms that are not the identity
    return model


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(net(), pictures(2), normalization=IMAGENET)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_equal_to_eager_for_every_batch_size(graph: Graph, batch: int) -> None:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    x = pictures(batch, seed=batch)
    with torch.no_grad():
        assert torch.equal(graph.module(x), net().eval()((x - mean) / std))


def test_normalization_is_the_first_nodes(graph: Graph) -> None:
    kinds = [op_name(node) for node in graph.nodes() if node.op != "get_attr"]
    assert kinds[:4] == ["placeholder", "sub", "div", "conv2d"]
    assert list(operators(graph))[:3] == ["image/placeholder#0", "normalize/sub#0", "normalize/div#0"]
    assert graph.input_size_px == (8, 8)
    assert graph.symbols == ("batch",)


def test_a_second_normalization_does_not_overwrite_the_first() -> None:
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    once = capture(nn.Identity(), pictures(2), normalization=IMAGENET)
    twice = with_normalization(once, half)
    x = pictures(2)
    assert torch.equal(twice.module(x), once.module((x - 0.5) / 0.5))


def test_inplace_operators_dropout_and_guards_are_gone(graph: Graph) -> None:
    for node in graph.nodes():
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        assert not op_name(node).endswith("_")
        assert op_name(node) != "dropout"
    assert {name for name, _ in graph.module.named_parameters()} == {
        str(node.target) for node in graph.nodes() if node.op == "get_attr" and "running" not in str(node.target)
    } - {"normalize_mean", "normalize_std"}


def test_the_captured_module_is_untouched() -> None:
    model = net().train()
    model.inner_blocks[1].eval()
    model(pictures(4)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: value.requires_grad for name, value in model.named_parameters()}
    captured = capture(model, pictures(2))
    captured.module(pictures(2).requires_grad_()).sum().backward()
    assert gradients
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in model.named_parameters():
        assert value.requires_grad == wanted[name]
        assert (value.grad is None) == (name not in gradients)
        assert value.grad is None or torch.equal(value.grad, gradients[name])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Views(nn.Module):
    """Writes through views, which only torch's own functionalization understands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y.view(y.shape[0], -1).relu_()
        y[:, 0] = 0.5
        first, second = y.chunk(2, 1)
        second.mul_(2.0)
        return y.mean((2, 3)) + first.sum()


class Written(nn.Module):
    """Writes to its input, to a fresh tensor and to a tensor of a wider type."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        y = torch.zeros_like(x).copy_(x).add_(torch.ones(3, 1, 1, dtype=torch.float64))
        return F.silu(y, inplace=True) + x


@pytest.mark.parametrize("model", [Views(), Written()], ids=["views", "written"])
def test_writes_in_place_keep_their_meaning(model: nn.Module) -> None:
    model = model.eval()
    captured = capture(model, pictures(2))
    x = pictures(3)
    kept = x.clone()
    with torch.no_grad():
        found = captured.module(x)
        assert torch.equal(x, kept)
        wanted = model(x.clone())
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not any(op_name(node).endswith("_") for node in captured.nodes())
    if isinstance(model, Views):
        assert "batch_norm" in {op_name(node) for node in captured.nodes()}


class Always(nn.Module):
    """Monte Carlo dropout: part of the model's function, so capture must not take it out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def test_dropout_that_is_on_in_eval_mode_stays() -> None:
    out = capture(Always(), pictures(2)).module(torch.ones(2, 3, 8, 8))
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_float64_models_are_captured_in_float64() -> None:
    model = net().double().eval()
    x = pictures(3).double()
    captured = capture(model, x[:2], normalization=Normalization((0.1,) * 3, (0.3,) * 3))
    assert captured.inputs[0].dtype == "float64"
    assert captured.example()[0].dtype == torch.float64
    torch.testing.assert_close(captured.module(x), model((x - 0.1) / 0.3), rtol=1e-12, atol=1e-12)


def test_timm_attention_is_visible_on_the_copy_alone() -> None:
    timm = pytest.importorskip("timm", reason="needs the extra 'vision'")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=4
    ).eval()
    assert model.blocks[0].attn.fused_attn
    captured = capture(model, pictures(2, 32))
    assert model.blocks[0].attn.fused_attn
    assert not any(getattr(module, "fused_attn", False) for module in prepared_copy(model).modules())
    kinds = [name for name in operators(captured) if name.startswith("blocks.0.attn/")]
    assert {"blocks.0.attn/matmul#0", "blocks.0.attn/matmul#1", "blocks.0.attn/softmax#0"} <= set(kinds)
    with torch.no_grad():
        torch.testing.assert_close(captured.module(pictures(3, 32)), model(pictures(3, 32)), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the extra 'text'")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=3
    )
    return transformers.BertForSequenceClassification(config).eval()


def test_bert_with_dynamic_batch_and_length(bert: nn.Module) -> None:
    ones = torch.ones(2, 8, dtype=torch.int64)
    captured = capture(bert, {"input_ids": ones, "attention_mask": ones})
    assert [spec.name for spec in captured.inputs] == ["input_ids", "attention_mask"]
    assert captured.symbols == ("batch", "length")
    predictor = GraphPredictor(captured)
    for batch, length in ((1, 5), (3, 12), (4, 2)):
        mask = torch.ones(batch, length, dtype=torch.int64)
        mask[0, length // 2 :] = 0
        texts = {"input_ids": torch.arange(batch * length).reshape(batch, length) % 32, "attention_mask": mask}
        with torch.no_grad():
            torch.testing.assert_close(predictor(texts), bert(**texts).logits, rtol=1e-5, atol=1e-6)
    again = from_program(_through_file(captured), names=["input_ids", "attention_mask"])
    assert signature(again) == signature(captured)
    assert again.inputs == captured.inputs


def _through_file(graph: Graph) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(to_program(graph), file)
    file.seek(0)
    return torch.export.load(file)


def test_signature_survives_a_file(graph: Graph) -> None:
    again = from_program(_through_file(graph))
    assert signature(again) == signature(graph)
    assert again.inputs == graph.inputs
    assert torch.equal(again.module(pictures(3)), graph.module(pictures(3)))


def test_a_program_of_the_user_gets_the_same_names() -> None:
    program = torch.export.export(net().eval(), (pictures(2),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    assert signature(from_program(program)) == signature(capture(net(), pictures(2)))


def test_parameters_are_shared_not_copied(graph: Graph) -> None:
    again = with_normalization(graph, IMAGENET)
    held = {value.data_ptr() for value in graph.module.parameters()}
    assert {value.data_ptr() for value in again.module.parameters()} == held


class Bad(nn.Module):
    """A network with one module that cannot be exported."""

    def __init__(self, bad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.branch = nn.Conv2d(3, 4, 3), Apply(bad)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.conv(x))


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FAILURES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "control flow": (lambda x: x if x.sum().gt(0) else -x, "gt"),
    "numpy": (lambda x: torch.from_numpy(x.numpy()), "numpy"),
    "a fixed batch": (lambda x: x.relu().reshape(2, -1).tanh(), "reshape"),
    "an error of its own": (lambda x: x @ torch.ones(5, 5), "matmul"),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_names_operator_and_module_and_prints_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    bad, operator = FAILURES[name]
    model = Bad(bad)
    with pytest.raises(BadInput) as caught:
        capture(model, pictures(2))
    assert f"operator '{operator}' in module 'branch'" in str(caught.value)
    assert "export of Bad failed" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Boxes(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"boxes": x}


class Locked(nn.Module):
    """Holds a tensor that torch refuses to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.doubled = self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return x * self.doubled.sum()


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Conv2d(3, 4, 3), pictures(1), "at least 2 along dynamic dimensions"),
        (Locked(), pictures(2), "Locked cannot be copied"),
    ],
    ids=["batch of one", "not copyable"],
)
def test_bad_input_is_refused(model: nn.Module, example: Tensor, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        capture(model, example)


def test_an_output_by_another_name_is_taken_first() -> None:
    captured = capture(Boxes(), pictures(2))
    assert torch.equal(captured.module(pictures(3)), pictures(3))


def test_half_precision_of_a_graph_is_near_and_not_equal(graph: Graph) -> None:
    exact = GraphPredictor(graph)(pictures(3))
    narrow = GraphPredictor(graph, arithmetic="bf16")(pictures(3))
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, exact)
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.05)


def test_attribute_refuses_what_is_no_tensor(graph: Graph) -> None:
    with pytest.raises(BadInput, match="wanted a parameter or buffer"):
        attribute(graph.module, "inner")


class Branched(nn.Module):
    """ReLUs that may overwrite what they read, and two that may not: of an input, and of what is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        kept = self.conv(inputs.relu())
        return (self.norm(kept).relu() + kept.relu() + kept).relu().mean((2, 3))


def test_relus_overwrite_what_nothing_else_reads() -> None:
    graph = capture(Branched().eval(), torch.rand(2, 3, 6, 6))
    run = overwriting(graph)
    names = [op_name(node) for node in run.nodes() if op_name(node).startswith("relu")]
    assert names == ["relu", "relu_", "relu", "relu_"]
    assert not any(op_name(node) == "relu_" for node in graph.nodes())
    inputs = torch.randn(3, 3, 6, 6)
    before = inputs.clone()
    answers = []
    for module in (graph.module, run.module):
        point = inputs.clone().requires_grad_()
        value = module(point)
        answers.append((value, *torch.autograd.grad(value.square().sum(), point)))
    assert all(torch.equal(plain, quick) for plain, quick in zip(*answers, strict=True))
    with torch.no_grad():
        run.module(inputs)
    assert torch.equal(inputs, before)
