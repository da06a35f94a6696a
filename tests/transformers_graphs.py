"""Tiny transformers with random weights, captured: one of each kind that migrations must know."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import timm
import torch
import transformers as hf
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture

WORDS = 60
SIZES = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert() -> nn.Module:
    config = hf.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=32)
    return hf.BertForSequenceClassification(config)


def opt() -> nn.Module:
    return hf.OPTForCausalLM(hf.OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=32, word_embed_proj_dim=32))


def bloom() -> nn.Module:
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4))


def llama() -> nn.Module:
    config = hf.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=32)
    return hf.LlamaForCausalLM(config)


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, num_heads=4, depth=2, num_classes=5)


def swin() -> nn.Module:
    sizes = {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32, "window_size": 7}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "opt": opt,
    "bloom": bloom,
    "llama": llama,
    "vit": vit,
    "swin": swin,
}


def inputs_of(name: str, seed: int = 0, count: int = 4) -> Tensor | dict[str, Tensor]:
    """Pictures, or token ids with a mask that leaves the end of the first sentence out."""
    made = torch.Generator().manual_seed(seed)
    if name in ("vit", "swin"):
        edge = 32 if name == "vit" else 56
        return torch.rand(count, 3, edge, edge, generator=made)
    mask = torch.ones(count, 12, dtype=torch.int64)
    mask[0, 8:] = 0
    return {"input_ids": torch.randint(0, WORDS, (count, 12), generator=made), "attention_mask": mask}


@cache
def captured(name: str, dtype: torch.dtype = torch.float32) -> Graph:
    """The graph of a model whose norms have gains and offsets that are not 1 and 0."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(dtype)
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=made).to(dtype))
    example = inputs_of(name)
    return capture(model, example.to(dtype) if isinstance(example, Tensor) else example)


def answer(graph: Graph, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """The output of a graph."""
    given = [inputs] if isinstance(inputs, Tensor) else [inputs[spec.name] for spec in graph.inputs]
    with torch.no_grad():
        return graph.module(*given)
