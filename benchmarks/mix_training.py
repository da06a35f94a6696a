"""Mix training against training with one resize: accuracy over SysNoise's eleven resizes, and how far it spreads.

    python benchmarks/mix_training.py --cache FOLDER [--shared FOLDER] [--epochs 6] [--processes 2]

ResNet-20 for CIFAR-10 gets a new head and is fine-tuned on 8,000 pictures of Tiny-ImageNet's validation set, 64 pixels
reduced to 32, and tested on the 2,000 others: once with Pillow's bilinear resize throughout, once with a resize drawn
anew for each batch out of the six of the paper's table 7. Three seeds; each run is kept in the cache, so that a killed
one goes on. Prints the accuracy under each resize, the standard deviation over the eleven (ddof 1, as in the paper's
tables), and exits with 1 where mix training does not lower its mean. Needs the development data.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.pipeline import Pipeline, Resize
from seatrial.data.files import open_data
from seatrial.data.image_set import ImageSet
from seatrial.jobs.noises import sysnoise_resizes
from seatrial.models.opened import Model, open_model
from seatrial.train.loop import Training
from seatrial.train.mix_training import RESIZES, MixTraining, pictures, variants
from seatrial.train.shift_flip import ShiftFlip, unit
from seatrial.train.trainable import trainable

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TESTED = sysnoise_resizes()
TRAINED_ON, CLASSES, EDGE_PX = 8_000, 200, 32
KINDS, SEEDS = ("one resize", "mix"), (0, 1, 2)
MIX = MixTraining(decoders=(), augment=ShiftFlip())


def network(path: Path, seed: int) -> nn.Module:
    """Return the trained network with a fresh head for all classes."""
    opened = open_model(path)
    assert isinstance(opened, Model)
    module = trainable(opened.graph)
    (head,) = (name for name, value in module.named_parameters() if value.ndim == 2)
    (bias,) = (name for name, value in module.named_parameters() if tuple(value.shape) == (10,))
    rng = generator(seed, "head")
    drawn = torch.from_numpy(rng.normal(0, 0.05, (CLASSES, module.get_parameter(head).shape[1]))).float()
    for name, value in ((head, drawn), (bias, torch.zeros(CLASSES))):
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner).register_parameter(last, nn.Parameter(value))
    return module


def under(resize: str) -> Pipeline:
    library, _, kind = resize.partition("-")
    return Pipeline((EDGE_PX, EDGE_PX), Resize(exact_px=(EDGE_PX, EDGE_PX), library=library, interpolation=kind))  # pyright: ignore[reportArgumentType]


def divided(shared: Path) -> tuple[ImageSet, ImageSet]:
    """Return the pictures to train on and those to test on: four fifths and one fifth of each class."""
    whole = open_data(shared / "tiny_imagenet_val.tar.xz")
    assert isinstance(whole, ImageSet)
    order = generator(0, "division").permutation(len(whole))
    labels = np.asarray(whole.labels)[order]
    tested = np.concatenate([order[labels == c][: (len(whole) - TRAINED_ON) // CLASSES] for c in range(CLASSES)])
    return whole.subset(sorted(set(order.tolist()) - set(tested.tolist()))), whole.subset(sorted(tested.tolist()))


def run(shared: Path, cache: Path, epochs: int, asked: tuple[int, str]) -> tuple[int, str, dict[str, float]]:
    """Train and test one network unless that is done; return accuracies by resize."""
    seed, kind = asked
    file = cache / f"{kind.replace(' ', '-')}-{seed}-{epochs}.json"
    if not file.exists():
        torch.set_num_threads(1)
        learned, tested = divided(shared)
        module = network(shared / "models" / "resnet20_cifar10.pt2", seed)
        shown = pictures(under("pillow-bilinear"), learned) if kind == KINDS[0] else variants(
            MIX.pipelines(under("pillow-bilinear")), learned
        )[0]  # fmt: skip
        Training(epochs, 64, 0.05, 5e-4, optimizer="sgd", warm_up=0.1, decayed="matrices").fit(
            module, shown, torch.tensor(learned.labels), one_resize if kind == KINDS[0] else MIX, seed=seed,
            checkpoint=file.with_suffix(".ckpt"), augment=MIX.augment if kind == KINDS[0] else None,
        )  # fmt: skip
        found = {}
        labels = torch.tensor(tested.labels)
        for resize in TESTED:
            inputs = pictures(under(resize), tested)
            with torch.no_grad():
                answers = torch.cat([module(unit(part)).argmax(1) for part in inputs.split(100)])
            found[resize] = float((answers == labels).double().mean())
        file.write_text(json.dumps(found))
    return seed, kind, json.loads(file.read_text())


def one_resize(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for checkpoints and results")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    work = partial(run, given.shared, given.cache, given.epochs)
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        for seed, kind, accuracies in pool.map(work, product(SEEDS, KINDS)):
            print(f"seed {seed}, {kind}: done", file=sys.stderr, flush=True)
            found[kind].append(accuracies)
    print(f"Trained with a resize out of: {', '.join(RESIZES)}; tested on 2,000 pictures, {len(SEEDS)} seeds.\n")
    print(f"| trained with | {' | '.join(TESTED)} | mean | std by seed | mean std |\n|{'---|' * (len(TESTED) + 4)}")
    spread = {}
    for kind, runs in found.items():
        table = 100 * np.array([[one[resize] for resize in TESTED] for one in runs])
        deviations = table.std(1, ddof=1)
        spread[kind] = float(deviations.mean())
        cells = [*(f"{value:.2f}" for value in table.mean(0)), f"{table.mean():.2f}"]
        told = ", ".join(f"{value:.3f}" for value in deviations)
        print(f"| {kind} | {' | '.join(cells)} | {told} | {spread[kind]:.3f} |")
    return 0 if spread["mix"] < spread["one resize"] else 1


if __name__ == "__main__":
    sys.exit(main())
