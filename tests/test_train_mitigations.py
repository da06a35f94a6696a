"""Mix training, adversarial training, TENT and the loop: draws, hand-worked steps, and what stays as it was."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.data.files import open_data
from seatrial.data.load import load
from seatrial.deploy.torch_target import Torch
from seatrial.errors import BadInput
from seatrial.train.adversarial import Adversarial
from seatrial.train.loop import Training
from seatrial.train.mix_training import MixTraining, pictures, variants
from seatrial.train.tent import Tent, entropy
from seatrial.train.trainable import trainable, trained


def encoded(count: int = 6) -> list[tuple[bytes, int]]:
    """Return small JPEG pictures with chroma that decoders upsample in their own ways."""
    found = []
    for i in range(count):
        rng = generator(i, "encoded")
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((40, 40))
        kept = io.BytesIO()
        coarse.save(kept, "JPEG", quality=80)
        found.append((kept.getvalue(), i % 2))
    return found


PIPELINE = Pipeline((24, 24), Resize(short_side_px=26))


class Shown(nn.Module):
    """Keeps what it is shown, and answers with a mean that has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x.mean((1, 2, 3))[:, None] * self.weight


# Mix training


def test_variants_are_what_each_pipeline_loads() -> None:
    samples = open_data(encoded())
    mix = MixTraining(decoders=("pillow", "opencv"), resizes=("pillow-bilinear", "opencv-nearest"))
    pipelines = mix.pipelines(PIPELINE)
    assert {(one.decoder, one.resize.library) for one in pipelines if one.resize} == {
        ("pillow", "pillow"), ("pillow", "opencv"), ("opencv", "pillow"), ("opencv", "opencv"),
    }  # fmt: skip
    found, kept = variants(pipelines, samples, workers=2)
    assert found.dtype == torch.uint8
    assert found.shape == (6, len(kept), 3, 24, 24)
    for i, sample in enumerate(samples):
        for j, pipeline in enumerate(kept):
            assert np.array_equal(found[i, j].permute(1, 2, 0).numpy(), load(pipeline, sample).pixels)
    for i in range(len(kept)):
        assert not any(torch.equal(found[:, i], found[:, j]) for j in range(i))
    assert torch.equal(pictures(kept[0], samples), found[:, 0])


def test_equal_variants_are_left_out_and_refused_alone() -> None:
    samples = open_data(encoded())
    plain = Pipeline((24, 24), Resize(short_side_px=26))
    found, kept = variants((plain, plain, MixTraining().pipelines(plain)[1]), samples)
    assert len(kept) == found.shape[1] == 2
    with pytest.raises(BadInput, match="equal pictures"):
        variants((plain, plain), samples)


def test_a_pipeline_without_a_resize_is_mixed_over_decoders_alone() -> None:
    found = MixTraining().pipelines(Pipeline((40, 40)))
    assert [one.decoder for one in found] == ["pillow", "opencv", "pyav"]
    assert all(one.resize is None for one in found)


@pytest.mark.parametrize("draw", ["iteration", "picture"])
def test_the_draw_is_one_for_a_batch_or_one_a_picture(draw: str) -> None:
    stored = torch.arange(4, dtype=torch.uint8).reshape(1, 4, 1, 1, 1).expand(50, 4, 3, 2, 2)
    mix, module, labels = MixTraining(draw=draw), Shown(), torch.zeros(50, dtype=torch.int64)  # pyright: ignore[reportArgumentType]
    for step in range(30):
        mix.loss(module, stored, labels, rng=generator(step, "draw"))
    levels = [(seen[:, 0, 0, 0] * 255).round().int() for seen in module.seen]
    assert set(torch.cat(levels).tolist()) == {0, 1, 2, 3}
    assert all((len(level.unique()) == 1) == (draw == "iteration") for level in levels)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadInput, match="did you mean"):
        MixTraining(resizes=("pillow-bilinea",))
    with pytest.raises(BadInput, match="draw"):
        MixTraining(draw="epoch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="neither"):
        MixTraining(decoders=(), resizes=())


# Adversarial training


def test_the_loss_is_that_of_attacked_and_clean_pictures() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.0), nn.Linear(12, 3)).train()
    module[1].eval()
    modes: list[list[bool]] = []

    def attack(seen: nn.Module, inputs: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
        modes.append([part.training for part in seen.modules()])
        return (inputs + 0.1).clamp(0, 1)

    inputs, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    before = [part.training for part in module.modules()]
    found = Adversarial(attack=attack, clean=0.25).loss(module, inputs, labels, rng=generator(0))
    assert [part.training for part in module.modules()] == before
    assert not any(modes[0])
    worse = F.cross_entropy(module((inputs + 0.1).clamp(0, 1)), labels)
    assert torch.allclose(found, 0.75 * worse + 0.25 * F.cross_entropy(module(inputs), labels))
    with pytest.raises(BadInput, match="share"):
        Adversarial(attack=attack, clean=1.5)


# TENT


def norm_network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    with torch.no_grad():
        net(torch.rand(64, 3, 8, 8))
    return net.eval()


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(norm_network(), torch.rand(2, 3, 8, 8))


def test_tent_is_the_published_step_on_the_eager_network(graph: Graph) -> None:
    """The oracle: batch statistics, Adam on gains and offsets alone, answers before the step; three batches online."""
    eager = norm_network()
    norm = eager[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    eager.train().requires_grad_(False)
    norm.requires_grad_(True)
    optimizer = torch.optim.Adam(norm.parameters(), lr=0.01)
    online = Tent(rate=0.01, episodic=False).adapting(graph)
    for seed in range(3):
        batch = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.5
        outputs = eager(batch)
        loss = torch.distributions.Categorical(logits=outputs).entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.allclose(online(batch), outputs.detach(), atol=1e-5)


def test_tent_lowers_the_entropy_and_forgets(graph: Graph) -> None:
    batch = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(5)) ** 2
    once = Tent(rate=0.01, steps=1).adapting(graph)(batch)
    often = Tent(rate=0.01, steps=10).adapting(graph)
    answers = often(batch)
    assert float(entropy(answers).mean()) < float(entropy(once).mean())
    assert torch.equal(often(batch), answers)
    online = Tent(rate=0.01, steps=10, episodic=False).adapting(graph)
    first = online(batch)
    assert not torch.equal(online(batch), first)
    online.reset()
    assert torch.equal(online(batch), first)
    assert often.gives == {"logits", "labels"}
    with torch.no_grad():
        assert not often(batch).requires_grad


def test_tent_takes_a_batch_with_one_value_a_channel_as_evaluation_does() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)
    graph = capture(nn.Sequential(*body).eval(), torch.rand(2, 3, 8, 8))
    one, still = torch.rand(1, 3, 8, 8), Tent(rate=1e-9)
    assert torch.allclose(still.adapting(graph)(one), graph.module(one), atol=1e-5)
    several = torch.cat([one, torch.rand(2, 3, 8, 8)])
    assert not torch.allclose(still.adapting(graph)(several)[:1], graph.module(one), atol=1e-3)


def test_tent_needs_norms() -> None:
    plain = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2))
    with pytest.raises(BadInput, match="norms"):
        Tent().adapting(plain)
    layered = capture(nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2))
    assert len(Tent().adapting(layered).parameters) == 2
    with pytest.raises(BadInput, match="step"):
        Tent(steps=0)


# The loop


def fit(module: nn.Module, training: Training, **options) -> nn.Module:
    x = torch.rand(24, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    return training.fit(module, x, y, lambda m, a, b: F.cross_entropy(m(a), b), seed=0, **options)


def dropping() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.3), nn.Linear(8, 2))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_network_with_dropout_resumes_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    training = Training(4, batch=7, peak_rate=0.05, optimizer=optimizer)  # pyright: ignore[reportArgumentType]
    state = torch.random.get_rng_state()
    whole = fit(dropping(), training).state_dict()

    def stop(epoch: int, _: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(dropping(), training, checkpoint=tmp_path / "c", progress=stop)
    torch.manual_seed(99)  # what happens outside does not matter
    resumed = fit(dropping(), training, checkpoint=tmp_path / "c").state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    torch.random.set_rng_state(state)


class Viewed(nn.Module):
    """The classic network: convolutions, and a view of the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.conv(inputs).relu()
        return self.out(maps.view(maps.shape[0], -1))


def test_a_network_that_views_its_last_map_learns_and_is_opened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    captured = capture(Viewed().eval(), torch.rand(2, 3, 2, 2))
    module = fit(trainable(captured), Training(2, batch=8, peak_rate=0.05))
    learned = trained(captured, module)
    opened = Torch().open(Torch().compile(learned, tmp_path / "net", bits="float32"), threads=1)
    inputs = torch.rand(5, 3, 2, 2)
    torch.testing.assert_close(opened(inputs), learned.module(inputs))
    assert not torch.equal(learned.module(inputs), captured.module(inputs))


def test_sgd_decays_matrices_alone() -> None:
    module = nn.Linear(3, 2)
    before = [value.detach().clone() for value in module.parameters()]
    training = Training(1, 4, 0.1, 0.5, optimizer="sgd", momentum=0, warm_up=0, decayed="matrices")
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    training.fit(module, x, y, lambda m, a, b: 0 * m(a).sum(), seed=0)
    assert torch.allclose(module.weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias, before[1])


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BadInput, match="epoch 1"):
        Training(2).fit(
            nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4), lambda m, a, b: m(a).sum() * float("nan"), seed=0
        )
    with pytest.raises(BadInput, match="rate"):
        Training(1, peak_rate=0.0)
