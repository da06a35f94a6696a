"""Migration and batch norm folding: the function of the network stays, to 1e-5 in float32 and 1e-10 in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.batch_norm import fold_batch_norm

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Steps(nn.Module):
    """Named modules and the function that joins them."""

    def __init__(self, run: Callable[[Steps, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class RMSNorm(nn.Module):
    """As language models write it: the gain is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def conv(into: int = 6, out: int = 6, **options: object) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, **options)  # pyright: ignore[reportArgumentType]


def several(s: Steps, x: Tensor) -> Tensor:
    y = s.norm(x)
    return s.q(y) @ s.k(y).transpose(1, 2) @ s.v(y)


Build = Callable[[], Steps]
# name: (network, input shape, producer, consumers, with a shift)
LAWS: dict[str, tuple[Build, tuple[int, ...], str, tuple[str, ...], bool]] = {
    "conv, relu, conv": (
        lambda: Steps(lambda s, x: s.b(s.a(x).relu()), a=conv(), b=conv(padding=1)),
        (2, 6, 8, 8),
        "a/conv2d#0",
        ("b/conv2d#0",),
        False,
    ),
    "conv, conv without padding": (
        lambda: Steps(lambda s, x: s.b(s.a(x)), a=conv(padding=1), b=conv(bias=False)),
        (2, 6, 8, 8),
        "a/conv2d#0",
        ("b/conv2d#0",),
        True,
    ),
    "conv, depthwise": (
        lambda: Steps(lambda s, x: s.b(F.relu(s.a(x))), a=conv(bias=False), b=conv(6, 12, groups=6, padding=1)),
        (2, 6, 8, 8),
        "a/conv2d#0",
        ("b/conv2d#0",),
        False,
    ),
    "conv, pooling, grouped": (
        lambda: Steps(lambda s, x: s.b(F.max_pool2d(s.a(x), 2)), a=conv(), b=conv(6, 8, groups=2)),
        (2, 6, 12, 12),
        "a/conv2d#0",
        ("b/conv2d#0",),
        False,
    ),
    "batch norm, conv": (
        lambda: Steps(lambda s, x: s.b(s.a(x).relu()), a=nn.BatchNorm2d(6), b=conv(padding=1)),
        (2, 6, 8, 8),
        "a/batch_norm#0",
        ("b/conv2d#0",),
        False,
    ),
    "linear, linear": (
        lambda: Steps(lambda s, x: s.b(s.a(x)), a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 4)),
        (2, 5, 6),
        "a/linear#0",
        ("b/linear#0",),
        True,
    ),
    "layer norm, several linears": (
        lambda: Steps(several, norm=nn.LayerNorm(6), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 6)),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("q/linear#0", "k/linear#0", "v/linear#0"),
        True,
    ),
    "layer norm without bias": (
        lambda: Steps(
            several,
            norm=nn.LayerNorm(6, bias=False),
            q=nn.Linear(6, 4, bias=False),
            k=nn.Linear(6, 4, bias=False),
            v=nn.Linear(6, 6),
        ),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("q/linear#0", "k/linear#0", "v/linear#0"),
        True,
    ),
    "layer norm without parameters": (
        lambda: Steps(lambda s, x: s.q(s.norm(x)), norm=nn.LayerNorm(6, elementwise_affine=False), q=nn.Linear(6, 4)),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("q/linear#0",),
        True,
    ),
    "only some of the linears": (
        lambda: Steps(several, norm=nn.LayerNorm(6), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 6)),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("q/linear#0", "v/linear#0"),
        True,
    ),
    "post-norm residual": (
        lambda: Steps(
            lambda s, x: s.last((y := s.norm(x)) + s.b(F.gelu(s.a(y)))),
            norm=nn.LayerNorm(6),
            a=nn.Linear(6, 12),
            b=nn.Linear(12, 6),
            last=nn.LayerNorm(6),
        ),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("a/linear#0",),
        True,
    ),
    "a residual behind relu": (
        lambda: Steps(lambda s, x: s.b(y := s.a(x).relu()) + y, a=conv(padding=1), b=conv(padding=1)),
        (2, 6, 8, 8),
        "a/conv2d#0",
        ("b/conv2d#0",),
        False,
    ),
    "rms norm, linears": (
        lambda: Steps(several, norm=RMSNorm(), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 6, bias=False)),
        (2, 5, 6),
        "norm/mul#1",
        ("q/linear#0", "k/linear#0", "v/linear#0"),
        False,
    ),
    "a gated product, linear": (
        lambda: Steps(
            lambda s, x: s.down(F.silu(s.gate(x)) * s.up(x)),
            gate=nn.Linear(6, 6),
            up=nn.Linear(6, 6, bias=False),
            down=nn.Linear(6, 4),
        ),
        (2, 5, 6),
        "up/linear#0",
        ("down/linear#0",),
        False,
    ),
    "layer norm, windows, linear": (
        lambda: Steps(
            lambda s, x: (
                s.a(F.pad(s.norm(x).roll(1, 1), (0, 0, 0, 0)).reshape(-1, 2, 6)) + s.b(s.norm(x)[:, 0])[:, None]
            ),
            norm=nn.LayerNorm(6),
            a=nn.Linear(6, 4),
            b=nn.Linear(6, 4),
        ),
        (3, 2, 6),
        "norm/layer_norm#0",
        ("a/linear#0",),
        True,
    ),
    "layer norm, mean over tokens, linear": (
        lambda: Steps(lambda s, x: s.a(s.norm(x).mean(1)), norm=nn.LayerNorm(6), a=nn.Linear(6, 4)),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("a/linear#0",),
        True,
    ),
    "layer norm, convolution on channels first": (
        lambda: Steps(
            lambda s, x: s.a(s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), norm=nn.LayerNorm(6), a=conv()
        ),
        (2, 6, 8, 8),
        "norm/layer_norm#0",
        ("a/conv2d#0",),
        True,
    ),
    "layer norm, padded tokens, linear": (
        lambda: Steps(lambda s, x: s.a(F.pad(s.norm(x), (0, 0, 1, 2))), norm=nn.LayerNorm(6), a=nn.Linear(6, 4)),
        (2, 5, 6),
        "norm/layer_norm#0",
        ("a/linear#0",),
        False,
    ),
    "a residual behind a move": (
        lambda: Steps(
            lambda s, x: s.a(y := s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) + y.mean((2, 3), keepdim=True),
            norm=nn.LayerNorm(6),
            a=conv(),
        ),
        (2, 6, 8, 8),
        "norm/layer_norm#0",
        ("a/conv2d#0",),
        True,
    ),
    "the output is a reader too": (
        lambda: Steps(lambda s, x: s.a(x), a=nn.Linear(6, 6)),
        (2, 6),
        "a/linear#0",
        (),
        True,
    ),
}


def output(operator: str) -> Site:
    return Site.parse(f"{operator}:output")


def captured(build: Build, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    model = build().to(dtype)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
        for name, value in model.named_parameters():
            if "norm" in name or value.ndim == 1:
                value.add_(torch.rand_like(value))
    x = torch.randn(shape, dtype=dtype)
    return capture(model, x), x


def scales(count: int) -> Tensor:
    return torch.exp(torch.linspace(-2, 2, count))[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def migrated(graph: Graph, *edits: Migrate) -> Graph:
    return realise(graph, Recipe(edits, signature(graph)))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(LAWS))
def test_the_function_stays(name: str, dtype: torch.dtype) -> None:
    build, shape, producer, consumers, shifted = LAWS[name]
    graph, x = captured(build, shape, dtype)
    assert producer in operators(graph)
    shift = torch.linspace(-1, 1, 6) if shifted else torch.zeros(6)
    edit = Migrate(output(producer), tuple(output(consumer) for consumer in consumers), shift, scales(6))
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    code = graph.module.code
    new = migrated(graph, edit)
    with torch.no_grad():
        assert relative(new.module(x), graph.module(x)) < TOLERANCE[dtype]
    assert all(value.dtype in (dtype, torch.int64) for value in new.module.state_dict().values())
    # Something did move: the tensor behind the producer is not what it was.
    assert relative(_value(new, producer, x), _value(graph, producer, x)) > 0.1
    assert graph.module.code == code
    assert all(torch.equal(value, before[key]) for key, value in graph.module.state_dict().items())


def _value(graph: Graph, operator: str, x: Tensor) -> Tensor:
    seen = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            seen[n] = super().run_node(n)
            return seen[n]

    with torch.no_grad():
        Watching(graph.module).run(x)
    return seen[operators(graph)[operator]]


def test_the_migrated_tensor_is_x_minus_shift_over_scale() -> None:
    build, shape, producer, consumers, _ = LAWS["layer norm, several linears"]
    graph, x = captured(build, shape, torch.float64)
    shift, scale = torch.linspace(-1, 1, 6), scales(6)
    new = migrated(graph, Migrate(output(producer), tuple(map(output, consumers)), shift, scale))
    wanted = (_value(graph, producer, x) - shift) / scale
    torch.testing.assert_close(_value(new, producer, x), wanted, rtol=1e-10, atol=1e-10)
    assert [op_name(node) for node in new.nodes()].count("mul") == 0  # all readers are consumers: nothing to undo


def test_undoing_leaves_the_names_of_other_operators() -> None:
    build, shape, producer, consumers, _ = LAWS["post-norm residual"]
    graph, _ = captured(build, shape, torch.float32)
    new = migrated(graph, Migrate(output(producer), tuple(map(output, consumers)), torch.ones(6), scales(6)))
    assert [name for name in operators(new) if "migrate" not in name] == list(operators(graph))
    assert [name for name in operators(new) if "migrate" in name] == [
        "norm.migrate0/mul#0",
        "norm.migrate0/add#0",
    ]


def test_two_migrations_in_a_row_and_on_a_migrated_graph() -> None:
    def build() -> Steps:
        return Steps(lambda s, x: s.c(s.b(s.a(x).relu()).relu()), a=conv(), b=conv(), c=conv(6, 2))

    graph, x = captured(build, (2, 6, 10, 10), torch.float64)
    first = Migrate(output("a/conv2d#0"), (output("b/conv2d#0"),), torch.zeros(6), scales(6))
    second = Migrate(output("b/conv2d#0"), (output("c/conv2d#0"),), torch.zeros(6), scales(6).flip(0))
    together = migrated(graph, first, second)
    one_by_one = migrated(migrated(graph, first), second)
    for new in (together, one_by_one):
        with torch.no_grad():
            assert relative(new.module(x), graph.module(x)) < 1e-10


def _two(dtype: torch.dtype = torch.float32, **options: object) -> Graph:
    return captured(lambda: Steps(lambda s, x: s.b(s.a(x)), a=conv(), b=conv(**options)), (2, 6, 8, 8), dtype)[0]


def _between(run: Callable[[Steps, Tensor], Tensor]) -> Graph:
    return captured(lambda: Steps(run, a=conv(), b=conv()), (2, 6, 8, 8), torch.float32)[0]


A, B = output("a/conv2d#0"), output("b/conv2d#0")
ONE, NONE = torch.ones(6), torch.zeros(6)
REFUSED: Mapping[str, tuple[Callable[[], Graph], Migrate, str]] = {
    "a shift into padding": (lambda: _two(padding=1), Migrate(A, (B,), ONE, ONE), "pads with zeros"),
    "a shift into 'same'": (lambda: _two(padding="same"), Migrate(A, (B,), ONE, ONE), "pads with zeros"),
    "scale 0": (_two, Migrate(A, (B,), NONE, torch.tensor([1.0, 1, 0, 1, 1, 1])), "scale <= 0"),
    "scale nan": (_two, Migrate(A, (B,), NONE, torch.full((6,), float("nan"))), "scale <= 0"),
    "scale infinite": (_two, Migrate(A, (B,), NONE, torch.full((6,), float("inf"))), "scale <= 0"),
    "too few scales": (_two, Migrate(A, (B,), torch.zeros(3), torch.ones(3)), "3 "),
    "one scale": (_two, Migrate(A, (B,), torch.zeros(1), torch.ones(1)), "1 "),
    "shift and scale differ": (_two, Migrate(A, (B,), torch.zeros(3), ONE), "one value per channel"),
    "a consumer twice": (_two, Migrate(A, (B, B), NONE, ONE), "twice"),
    "unknown producer": (_two, Migrate(output("x/conv2d#0"), (B,), NONE, ONE), "did you mean"),
    "not behind the producer": (_two, Migrate(B, (A,), NONE, ONE), "reads the producer|direct edge"),
    "a sigmoid between": (
        lambda: _between(lambda s, x: s.b(s.a(x).sigmoid())),
        Migrate(A, (B,), NONE, ONE),
        "sigmoid between",
    ),
    "a shift through relu": (
        lambda: _between(lambda s, x: s.b(s.a(x).relu())),
        Migrate(A, (B,), ONE, ONE),
        "relu between",
    ),
    "a shift through padded tokens": (
        lambda: captured(
            lambda: Steps(lambda s, x: s.a(F.pad(s.norm(x), (0, 0, 1, 2))), norm=nn.LayerNorm(6), a=nn.Linear(6, 4)),
            (2, 5, 6),
            torch.float32,
        )[0],
        Migrate(output("norm/layer_norm#0"), (output("a/linear#0"),), ONE, ONE),
        "pad between",
    ),
    "a product with itself": (
        lambda: _between(lambda s, x: s.b((y := s.a(x)) * y.relu())),
        Migrate(A, (B,), NONE, ONE),
        "mul between",
    ),
    "a consumer that has no weight": (
        lambda: _between(lambda s, x: s.b(s.a(x)) + s.b.weight.sum()),
        Migrate(A, (output("/add#0"),), NONE, ONE),
        "wanted a convolution or linear",
    ),
    "a producer that is a sum": (
        lambda: _between(lambda s, x: s.b(s.a(x) + 1)),
        Migrate(output("/add#0"), (B,), NONE, ONE),
        "migration from 'add'|channel axis",
    ),
    "another channel axis": (
        lambda: captured(
            lambda: Steps(lambda s, x: s.b(s.a(x)), a=conv(), b=nn.Linear(6, 3)), (2, 6, 8, 8), torch.float32
        )[0],
        Migrate(A, (output("b/linear#0"),), NONE, ONE),
        "channel axis",
    ),
    "a shift out of an rms norm": (
        lambda: captured(
            lambda: Steps(lambda s, x: s.q(s.norm(x)), norm=RMSNorm(), q=nn.Linear(6, 3)), (2, 5, 6), torch.float32
        )[0],
        Migrate(output("norm/mul#1"), (output("q/linear#0"),), ONE, ONE),
        "without shift",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_would_change_the_function_is_refused(name: str) -> None:
    build, edit, message = REFUSED[name]
    with pytest.raises(BadInput, match=message):
        migrated(build(), edit)


class Norms(nn.Module):
    """Every norm that folds, and those that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = conv(3, 6, bias=False), conv(6, 6, groups=6)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)
        self.shared, self.norm3 = conv(6, 6, padding=1), nn.BatchNorm2d(6)
        self.after_relu = nn.BatchNorm2d(6)
        self.read_twice, self.norm4 = conv(6, 6, padding=1), nn.BatchNorm2d(6)
        self.tokens, self.norm5 = nn.Linear(4, 4), nn.BatchNorm1d(6)
        self.linear, self.norm6 = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.depthwise(self.norm1(self.conv(x)).relu()))
        x = self.norm3(self.shared(x)) + self.shared(x)
        x = self.after_relu(x.relu())
        y = self.read_twice(x)
        x = (self.norm4(y) + y).flatten(2)[:, :, :4]
        x = self.norm5(self.tokens(x)).mean(1)
        return self.norm6(self.linear(x))


STAY = {"norm3", "after_relu", "norm4", "norm5"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_batch_norms_fold_where_they_may(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = Norms().to(dtype)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5)
    x = torch.randn(4, 3, 10, 10, dtype=dtype)
    graph = capture(model, x)
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    folded = fold_batch_norm(graph)
    left = {name.split("/")[0] for name in operators(folded) if "batch_norm" in name}
    assert left == STAY
    with torch.no_grad():
        assert relative(folded.module(x), graph.module(x)) < tolerance
    assert all(torch.equal(value, before[key]) for key, value in graph.module.state_dict().items())
    assert {value.dtype for value in folded.module.state_dict().values()} == {dtype}
    assert not any("norm1" in key for key in folded.module.state_dict())  # nothing is carried along unused
    again = fold_batch_norm(folded)
    assert signature(again) == signature(folded)
