"""Trained outliers: a few channels of all norms grow on some tokens, and the network answers much as before."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from seatrial.errors import BadInput
from seatrial.testing.trained_outliers import Batch, GrownOutliers, Loss, trained_outliers

WORDS, WIDTH, CHANNELS = 60, 32, 3
SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
KINDS = ("bert", "opt", "llama")


def network(kind: str, *, tied: bool = False) -> nn.Module:
    """A tiny transformer whose random answers depend on the text, and differ enough to be told apart."""
    torch.manual_seed(0)
    made: dict[str, tuple[type, type, dict[str, object]]] = {
        "bert": (hf.BertConfig, hf.BertForSequenceClassification, {"intermediate_size": 64}),
        "opt": (hf.OPTConfig, hf.OPTForCausalLM, {"ffn_dim": 64, "word_embed_proj_dim": WIDTH}),
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {"intermediate_size": 64, "num_key_value_heads": 2}),
    }
    config, model, options = made[kind]
    options |= {"max_position_embeddings": 16} | ({} if kind == "bert" else {"tie_word_embeddings": tied})
    module = model(config(**SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
        if not tied:
            (module.classifier if kind == "bert" else module.lm_head).weight.mul_(10)
    return module


def batches(count: int = 8, seed: int = 1) -> list[Batch]:
    """Random tokens; every second row ends early."""
    made, found = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        mask = torch.ones(16, 12, dtype=torch.int64)
        mask[::2, 8:] = 0
        found.append({"input_ids": torch.randint(0, WORDS, (16, 12), generator=made), "attention_mask": mask})
    return found


def answers(module: nn.Module, batch: Batch) -> Tensor:
    """The logits, one row for each text or each token that the mask leaves."""
    logits = module(**batch).logits
    return logits if logits.ndim == 2 else logits[batch["attention_mask"].bool()]


def answers_of(original: nn.Module) -> Loss:
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = answers(original, batch).softmax(-1)
        return nn.functional.cross_entropy(answers(module, batch), wanted)

    return loss


def grown(module: nn.Module, loss: Loss, **options: float) -> tuple[nn.Module, GrownOutliers]:
    given = {"channels": CHANNELS, "epochs": 20, "rate": 3e-3, **options}
    return trained_outliers(module, batches(), loss, rng=np.random.default_rng(0), **given)  # pyright: ignore[reportArgumentType]


@cache
def example(kind: str) -> tuple[nn.Module, nn.Module, GrownOutliers]:
    """A network, its copy with outliers, and what was grown."""
    module = network(kind)
    return module, *grown(module, answers_of(module))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def written(module: nn.Module, path: str, batch: Batch) -> Tensor:
    """What a norm gives, [rows, length, channels]."""
    seen: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_hook(lambda _, __, out: seen.append(out))  # pyright: ignore[reportArgumentType]
    module(**batch)
    handle.remove()
    return seen[0].reshape(*batch["input_ids"].shape, -1)


def test_every_norm_that_linear_operators_read_is_told(kind: str) -> None:
    _, _, found = example(kind)
    paths = {
        "bert": ["embeddings.LayerNorm", "0.attention.output.LayerNorm", "0.output.LayerNorm"],
        "opt": ["0.self_attn_layer_norm", "0.final_layer_norm", "decoder.final_layer_norm"],
        "llama": ["0.input_layernorm", "0.post_attention_layernorm", "model.norm"],
    }
    assert [one.path for one in found.before] == [one.path for one in found.after]
    assert all(one.path.endswith(end) for one, end in zip(found.after, paths[kind], strict=True))
    assert len(set(found.channels)) == CHANNELS


def test_ranges_are_those_of_the_networks(kind: str) -> None:
    module, twin, found = example(kind)
    for which, told in ((module, found.before), (twin, found.after)):
        for one in told:
            parts = [(written(which, one.path, batch), batch["attention_mask"].bool()) for batch in batches()]
            rows = np.concatenate([value[mask].numpy() for value, mask in parts])
            ours, others = rows[:, found.channels], np.delete(rows, found.channels, axis=1)
            np.testing.assert_allclose(one.channels, np.stack([ours.min(0), ours.max(0)], 1), rtol=1e-5)
            assert one.largest == pytest.approx(np.abs(ours).max(), rel=1e-5)
            assert one.typical == pytest.approx(np.quantile(np.abs(others), 0.5, method="lower"), rel=1e-5)


def test_the_channels_tower_behind_each_norm(kind: str) -> None:
    _, _, found = example(kind)
    for before, after in zip(found.before, found.after, strict=True):
        assert before.largest < 10 * before.typical
        assert after.largest > 30 * after.typical
        assert after.largest / after.typical > 5 * before.largest / before.typical


def test_they_depend_on_the_token(kind: str) -> None:
    """On texts that were not trained on."""
    _, twin, found = example(kind)
    (batch,) = batches(1, seed=2)
    shown = batch["attention_mask"].bool()
    chosen = torch.isin(batch["input_ids"], torch.tensor(found.tokens))
    for one in found.after:
        sizes = written(twin, one.path, batch)[..., found.channels].abs()
        assert float(sizes[chosen & shown].mean()) > 1.5 * float(sizes[~chosen & shown].mean())
    text = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches()])
    assert found.share == pytest.approx(float(torch.isin(text, torch.tensor(found.tokens)).double().mean()))
    assert 0.08 < found.share <= 0.1


@torch.no_grad()
def disagreement(module: nn.Module, twin: nn.Module) -> float:
    (batch,) = batches(1, seed=2)
    one, other = answers(module, batch), answers(twin, batch)
    return float((one.argmax(-1) != other.argmax(-1)).double().mean())


def test_answers_stay_near_the_original(kind: str) -> None:
    module, twin, _ = example(kind)
    assert disagreement(module, twin) < 0.3


def test_it_is_the_loss_that_keeps_them_there() -> None:
    module = network("llama")
    twin, _ = grown(module, lambda net, batch: 0 * answers(net, batch).sum())
    assert disagreement(module, twin) > 0.6


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_readers_take_back_what_norms_give_and_a_tied_head_is_left_alone(kind: str) -> None:
    """With a rate of 0 nothing is learned, so only gains and offsets change, by what they were asked to."""
    module = network(kind, tied=True)
    twin, found = grown(module, answers_of(module), rate=0.0, epochs=1, magnitude=80.0, height=4.0)
    (batch,) = batches(1, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(answers(twin, batch), answers(module, batch), rtol=1e-4, atol=1e-4)
    head = "model.decoder.final_layer_norm" if kind == "opt" else "model.norm"
    assert head not in {one.path for one in found.after}
    assert twin.get_submodule("lm_head").weight is twin.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(written(twin, head, batch), written(module, head, batch), rtol=1e-4, atol=1e-4)
    assert len(found.after) == 2
    for before, after in zip(found.before, found.after, strict=True):
        was, now = (np.array(one.channels) for one in (before, after))
        gains = (now[:, 1] - now[:, 0]) / (was[:, 1] - was[:, 0])
        np.testing.assert_allclose(np.sort(gains), [10, 15, 20], rtol=1e-4)
        offsets = np.abs(now.mean(1) - was.mean(1) * gains) / before.typical
        assert (offsets < 1e-3 if kind == "llama" else (offsets > 0.1) & (offsets < 40)).all()


class Small(nn.Module):
    """A norm, a linear operator, dropout, and a residual branch around them."""

    def __init__(self, *, normed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.dropout = nn.Embedding(WORDS, 8), nn.Dropout(0.5)
        self.norm = nn.LayerNorm(8) if normed else nn.Identity()
        self.inner = nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        given = self.embeddings(input_ids)
        return given + self.dropout(self.inner(self.norm(given))) * attention_mask[..., None]


def nothing(module: nn.Module, batch: Batch) -> Tensor:
    return module(**batch).square().mean()


def test_seeds_decide_and_the_model_stays() -> None:
    module = Small().train()
    state = copy.deepcopy(module.state_dict())
    texts = batches(2)
    kept, found = copy.deepcopy(texts), []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(trained_outliers(module, texts, nothing, channels=2, epochs=2, rng=np.random.default_rng(seed)))
        assert torch.equal(torch.get_rng_state(), before)
    (one, told), (same, told_again), (other, _) = found
    assert told == told_again
    states = [which.state_dict() for which in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in state)
    assert not any(torch.equal(states[0][name], states[2][name]) for name in state)
    assert module.training
    assert not one.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(batch[name], was[name]) for batch, was in zip(texts, kept) for name in was)


def test_what_cannot_be_grown_is_said() -> None:
    def asked(module: nn.Module, loss: Loss = nothing, channels: int = 2, spared: range = range(0)) -> None:
        rng = np.random.default_rng(0)
        trained_outliers(module, batches(2), loss, channels=channels, epochs=1, spared=spared, rng=rng)

    with pytest.raises(BadInput, match="Small without norms that feed linear operators"):
        asked(Small(normed=False))
    for channels in (0, 8):
        with pytest.raises(BadInput, match=f"outliers in {channels} of 8 channels"):
            asked(Small(), channels=channels)
    with pytest.raises(BadInput, match="a loss of nan in epoch 1"):
        asked(Small(), lambda module, batch: nothing(module, batch) * float("nan"))
    with pytest.raises(BadInput, match="texts of spared tokens alone"):
        asked(Small(), spared=range(WORDS))
    asked(Small(), spared=range(1, WORDS))


def test_progress_is_told_after_each_epoch() -> None:
    told: list[tuple[int, int]] = []
    rng = np.random.default_rng(0)
    trained_outliers(Small(), batches(1), nothing, channels=1, epochs=3, rng=rng, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]
