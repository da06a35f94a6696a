"""Ten architectures on the whole road: capture, fold, place, quantize, ONNX, ONNX Runtime and OpenVINO.

Prints a Markdown table. The weights are random (seeded), so accuracies mean nothing; differences are |a - b| / |b| of
the outputs over one fresh batch:

- "quantized": the simulation against the float graph.
- each runtime: what it answers against the simulation of what it was given, and in parentheses the simulation against
  itself with round-off of 6e-8 on every product, the largest of four draws. A value on the border of two codes falls on
  the other side when somebody adds in another order; each such flip causes others behind it, and random networks damp
  nothing, so a few percent are expected of deep networks.

A figure well above its parentheses means that the runtime does something else than round-off.

    .venv/bin/python benchmarks/architectures.py [NAME ...] [--threads N]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.sites import op_name
from seatrial.core.target import Target
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

Batch = Tensor | dict[str, Tensor]
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VOCABULARY, LENGTH = 128, 16
VISION = {
    "ResNet-18": "resnet18",
    "MobileNetV3-Large": "mobilenetv3_large_100",
    "EfficientNet-B0": "efficientnet_b0",
    "DeiT-Tiny": "deit_tiny_patch16_224",
    "Swin-Tiny": "swin_tiny_patch4_window7_224",
    "ConvNeXt-Tiny": "convnext_tiny",
}


def pictures(name: str, count: int, *, seed: int) -> Tensor:
    """Return smooth random pictures: white noise averages out in the first layers, and nothing would be left of it."""
    coarse = torch.from_numpy(generator(seed, name).random((count, 3, 7, 7), dtype="float32"))
    return nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic").clamp(0, 1)


def vision(name: str) -> nn.Module:
    """Return a timm network with random weights whose batch norms have seen data."""
    import timm

    model = timm.create_model(name, pretrained=False)
    # With statistics that do not fit its weights, activations would vanish or explode on their way.
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
    if norms:
        with torch.no_grad():
            model.train()((pictures("batch norms", 16, seed=0) - 0.45) / 0.225)
    return model.eval()


def bert() -> nn.Module:
    """Return a small BERT for sequence classification."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256
    )
    return BertForSequenceClassification(config)


def opt() -> nn.Module:
    """Return a small OPT language model."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        ffn_dim=256,
        word_embed_proj_dim=128,
    )
    return OPTForCausalLM(config)


def bloom() -> nn.Module:
    """Return a small BLOOM language model."""
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=4, n_head=4))


def llama() -> nn.Module:
    """Return a small LLaMA language model with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


TEXT: Mapping[str, Callable[[], nn.Module]] = {"BERT": bert, "OPT": opt, "BLOOM": bloom, "LLaMA": llama}


@dataclass(frozen=True)
class Row:
    """One line of the table; `deployed` and `flips` hold one relative difference for each runtime."""

    name: str
    capture_s: float
    sites: int
    folded: float
    quantized: float
    deployed: tuple[float, ...]
    flips: tuple[float, ...]

    def __str__(self) -> str:
        pairs = " | ".join(f"{one:.1e} ({other:.1e})" for one, other in zip(self.deployed, self.flips, strict=True))
        first = f"| {self.name} | {self.capture_s:.1f} | {self.sites} | {self.folded:.1e} "
        return f"{first}| {self.quantized:.1e} | {pairs} |"


class Jittered(fx.Interpreter):
    """Runs a graph with relative noise on every product, as large as the round-off of float32."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if op_name(n) in ("conv2d", "linear", "matmul", "baddbmm", "layer_norm", "mean", "softmax"):
            return value * (1 + 6e-8 * torch.randn_like(value))
        return value


def batch(name: str, *, seed: int) -> Batch:
    """Return four pictures, or four texts of which half are padded."""
    if name in VISION:
        return pictures(name, 4, seed=seed)
    rng = generator(seed, name)
    mask = torch.ones(4, LENGTH, dtype=torch.int64)
    mask[2:, LENGTH - 5 :] = 0
    return {"input_ids": torch.from_numpy(rng.integers(0, VOCABULARY, (4, LENGTH))), "attention_mask": mask}


def tensors(graph: Graph, inputs: Batch) -> tuple[Tensor, ...]:
    """Return a batch in the order of the graph's inputs."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs[spec.name] for spec in graph.inputs)


@torch.no_grad()
def run(graph: Graph, inputs: Batch) -> Tensor:
    """Return the graph's answer."""
    return real(graph.module(*tensors(graph, inputs)), inputs)


@torch.no_grad()
def jittered(graph: Graph, inputs: Batch, seed: int) -> Tensor:
    """Return the graph's answer under round-off noise."""
    torch.manual_seed(seed)
    return real(Jittered(graph.module).run(*tensors(graph, inputs)), inputs)


def real(output: Tensor, inputs: Batch) -> Tensor:
    """Leave out answers at padding, which nobody reads."""
    return output[inputs["attention_mask"].bool()] if isinstance(inputs, dict) and output.ndim == 3 else output


def relative(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def measure(name: str, targets: list[Target], folder: Path, threads: int) -> Row:
    """Take one architecture along the whole road."""
    torch.manual_seed(0)
    model = vision(VISION[name]) if name in VISION else TEXT[name]().eval()
    example = batch(name, seed=0)
    start = time.perf_counter()
    if isinstance(example, Tensor):
        captured = capture(model, example[:2], normalization=IMAGENET)
    else:
        captured = capture(model, {key: value[:2] for key, value in example.items()})
    capture_s = time.perf_counter() - start
    graph = fold_batch_norm(captured)
    calibration, fresh = [batch(name, seed=1 + i) for i in range(2)], batch(name, seed=9)
    plain = run(graph, fresh)
    folded = relative(plain, run(captured, fresh))
    sites, quantized, deployed, flips = 0, 0.0, [], []
    for target in targets:
        precision = place(graph, target.placement, Bits(8, 8))
        recipe = Nearest().plan(graph, calibration, precision, rng=generator(0, name))
        rounded = realise(graph, recipe)
        simulation = target.simulated(rounded)
        simulated = run(simulation, fresh)
        artefact = target.compile(rounded, folder / name / target.name, bits="w8a8")
        predictor = target.open(artefact, threads=threads)
        deployed.append(relative(real(predictor(fresh), fresh), simulated))
        predictor.close()
        flips.append(max(relative(jittered(simulation, fresh, seed), simulated) for seed in range(4)))
        sites, quantized = max(sites, len(recipe.rounds)), max(quantized, relative(simulated, plain))
    return Row(name, capture_s, sites, folded, quantized, tuple(deployed), tuple(flips))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all of them when left out")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = [*VISION, *TEXT]
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    targets: list[Target] = [OnnxRuntime(), OpenVino()]
    names = " | ".join(f"{target.name} (flips alone)" for target in targets)
    print(f"| architecture | capture (s) | sites | folded | quantized | {names} |")
    print("|---|" + "---|" * (4 + len(targets)))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or known:
            print(measure(name, targets, Path(folder), options.threads), flush=True)


if __name__ == "__main__":
    main()
