"""AutoAttack and its stages against torchattacks 3.5.1: verdicts, the accuracy that is left, and wall time.

    python benchmarks/autoattack.py --cache FOLDER [--shared FOLDER] [--samples 512] [--components NAME ...]

Three networks: a small one trained here as usual, at the epsilons where APGD-CE leaves 80, 50 and 20 % of the pictures
standing (found by bisection), the same one trained on what PGD-7 finds, at 8/255, and on request ResNet-20 of the
development data, at bisected epsilons again. The pictures are the first of CIFAR-10-JPEG's test set that the network
gets right, an equal number a class.

Ours sees the network as `seatrial robustness` does, with batch norms folded into convolutions, weights laid out
channels last and ReLUs in place; the peer sees the graph as it was loaded. Both have frozen parameters. The stages have
equal settings. The peer's own AutoAttack takes 10 steps where the authors take 100, so it stands twice: `autoattack`
are its stages at the authors' 100 steps in its own MultiAttack, `autoattack-10` is it as it comes, beside ours with 10
steps. The two take turns on batches, the first alternating. Everything found is kept in the cache, so that a killed run
goes on. Exits with 1 where fewer than 99 % of the verdicts of the whole are equal, or where it leaves more standing
than the peer by more than one picture.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attacks import Eager as Seen
from PIL import Image
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, Normalization, capture
from seatrial.core.noise import Attack
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.deploy.torch_target import Torch
from seatrial.models.opened import Model, open_model
from seatrial.noise.apgd_ce import ApgdCe
from seatrial.noise.apgd_t import ApgdT
from seatrial.noise.autoattack import AutoAttack
from seatrial.noise.fab_t import FabT
from seatrial.noise.pgd import PGD
from seatrial.noise.square import Square
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.train.adversarial import Adversarial
from seatrial.train.loop import Training
from seatrial.train.shift_flip import ShiftFlip

PEER = "torchattacks==3.5.1"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SUBJECTS = ("small", "hardened", "resnet20")
COMPONENTS = ("apgd_ce", "apgd_t", "fab_t", "square", "autoattack", "autoattack-10")
WHOLE = ("autoattack", "autoattack-10")
NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Counted(Predictor):
    """A predictor that counts the rows it was asked for."""

    def __init__(self, inner: Predictor) -> None:
        self._inner, self.rows = inner, 0

    @property
    def gives(self) -> frozenset[Gift]:
        return self._inner.gives

    def __call__(self, inputs: Inputs) -> Any:
        assert isinstance(inputs, Tensor)
        self.rows += len(inputs)
        return self._inner(inputs)


class Eager(nn.Module):
    """A graph as the peer wants it: a module with a parameter, which tells it the device."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph, self.rows = graph.module, 0
        self._graph.requires_grad_(False)
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.rows += len(inputs)
        return self._graph(inputs)


@dataclass(frozen=True)
class Subject:
    """A network and pictures that it gets right: float32 NCHW in [0, 1]."""

    name: str
    graph: Graph
    inputs: Tensor
    labels: Tensor


def install_peer(folder: Path) -> Any:
    """Install the peer without its dependencies into `folder`, once, and return it."""
    if not (folder / "torchattacks").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PEER]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    # It imports requests for downloads that no attack makes.
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    return importlib.import_module("torchattacks")


def pictures(archive: Path, cache: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return the first pictures of each class in turn: uint8 NCHW, and labels."""
    kept = cache / f"{archive.name.split('.')[0]}_{count}.npz"
    if not kept.exists():
        by_class: dict[str, list[bytes]] = {}
        with tarfile.open(archive) as files:
            named = sorted((f.name, f) for f in files if f.name.endswith(".jpg"))
            for name, member in named:
                found = by_class.setdefault(name.split("/")[-2], [])
                if len(found) < -(-count // 10):
                    content = files.extractfile(member)
                    assert content is not None
                    found.append(content.read())
        order = [(label, place) for place in range(-(-count // 10)) for label in range(10)][:count]
        names = sorted(by_class)
        pixels = [np.asarray(Image.open(io.BytesIO(by_class[names[c]][i])).convert("RGB")) for c, i in order]
        np.savez(kept, pixels=np.stack(pixels).transpose(0, 3, 1, 2), labels=np.array([c for c, _ in order]))
    loaded = np.load(kept)
    return torch.from_numpy(np.ascontiguousarray(loaded["pixels"])), torch.from_numpy(loaded["labels"])


def as_opened(graph: Graph) -> Predictor:
    """Return a predictor as `seatrial robustness` has it: batch norms folded, written and opened by the target."""
    with tempfile.TemporaryDirectory() as folder:
        artefact = Torch().compile(fold_batch_norm(graph), Path(folder) / "float", bits="float32")
        return Torch().open(artefact, threads=torch.get_num_threads())


def right_ones(name: str, graph: Graph, shared: Path, cache: Path, count: int) -> Subject:
    """Return the subject with the first `count` test pictures that the network gets right."""
    pixels, labels = pictures(shared / "cifar10_jpeg_test.tar.xz", cache, 5000)
    inputs = pixels.float().div_(255)
    predictor = as_opened(graph)
    with torch.no_grad():
        rows = torch.cat([predictor(part).argmax(1) for part in inputs.split(250)]).eq(labels).nonzero()[:count, 0]
    return Subject(name, graph, inputs[rows], labels[rows])


class Normalized(nn.Module):
    """A network behind the normalization of its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (NORMALIZATION.mean, NORMALIZATION.std))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner((inputs - self.mean) / self.std)


def small(name: str, shared: Path, cache: Path) -> Graph:
    """Return a small network trained on 10,000 pictures, `hardened` on what PGD-7 finds of them at 8/255.

    Its state is kept after every epoch.
    """
    pixels, labels = pictures(shared / "cifar10_jpeg_train.tar.xz", cache, 10_000)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 12, 1), (12, 16, 2), (16, 24, 1), (24, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    inner = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    attack = PGD(epsilon="8/255", steps=7, relative_step=0.25)

    def attacked(module: nn.Module, shown: Tensor, truth: Tensor, rng: np.random.Generator) -> Tensor:
        return attack.perturb(Seen(module), shown, truth, rng=[rng] * len(shown)).inputs

    def cross_entropy(module: nn.Module, shown: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(module(shown), truth)

    hostile = name == "hardened"
    Training(epochs=10, batch=128, peak_rate=4e-3, weight_decay=1e-3).fit(
        Normalized(inner),
        pixels,
        labels,
        Adversarial(attack=attacked, augment=ShiftFlip()) if hostile else cross_entropy,
        seed=0,
        checkpoint=cache / f"{name}.pt",
        augment=None if hostile else ShiftFlip(),
        progress=lambda done, of: print(f"training {name}: epoch {done} of {of}", file=sys.stderr, flush=True),
    )
    return capture(inner, torch.rand(2, 3, 32, 32), normalization=NORMALIZATION)


def epsilon_leaving(subject: Subject, share: float, cache: Path) -> float:
    """Return the epsilon at which APGD-CE leaves `share` of at most 128 pictures standing, by bisection."""
    count = min(len(subject.inputs), 128)
    kept = cache / f"epsilon_{subject.name}_{share}_{count}.json"
    if not kept.exists():
        inputs, labels = subject.inputs[:count], subject.labels[:count]
        predictor = as_opened(subject.graph)
        low, high = math.log(1e-4), math.log(0.1)
        for _ in range(8):
            middle = (low + high) / 2
            rng = [generator(0, "epsilon", i) for i in range(count)]
            found = ApgdCe(epsilon=math.exp(middle)).perturb(predictor, inputs, labels, rng=rng).inputs
            with torch.no_grad():
                standing = float((predictor(found).argmax(1) == labels).float().mean())
            low, high = (middle, high) if standing > share else (low, middle)
        kept.write_text(json.dumps(round(math.exp((low + high) / 2), 6)))
    return json.loads(kept.read_text())


def ours(component: str, epsilon: float) -> Attack:
    if component == "square":
        return Square(epsilon=epsilon, queries=5002)  # the peer asks twice more than it says
    if component == "autoattack-10":
        return AutoAttack(epsilon=epsilon, steps=10)
    kinds: dict[str, Callable[..., Attack]] = {
        "apgd_ce": ApgdCe,
        "apgd_t": ApgdT,
        "fab_t": FabT,
        "autoattack": AutoAttack,
    }
    return kinds[component](epsilon=epsilon)


def theirs(component: str, epsilon: float, peer: Any, module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    common = {"norm": "Linf", "eps": epsilon, "seed": 0}
    if component == "autoattack-10":
        return peer.AutoAttack(module, version="standard", n_classes=10, **common)
    stages = {
        "apgd_ce": lambda: peer.APGD(module, steps=100, loss="ce", **common),
        "apgd_t": lambda: peer.APGDT(module, steps=100, n_classes=10, **common),
        "fab_t": lambda: peer.FAB(module, steps=100, n_classes=10, multi_targeted=True, **common),
        "square": lambda: peer.Square(module, n_queries=5000, **common),
    }
    return peer.MultiAttack([make() for make in stages.values()]) if component == "autoattack" else stages[component]()


def duel(subject: Subject, epsilon: float, component: str, rows: slice, peer: Any, first: bool) -> dict[str, Any]:
    """Run both on the same pictures and return seconds, verdicts and forward rows of each."""
    inputs, labels = subject.inputs[rows].contiguous(), subject.labels[rows]
    predictor, module = Counted(as_opened(subject.graph)), Eager(subject.graph)
    rng = [generator(0, component, i) for i in range(rows.start, rows.stop)]
    attack, other = ours(component, epsilon), theirs(component, epsilon, peer, module)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: attack.perturb(predictor, inputs, labels, rng=rng).inputs,
        "theirs": lambda: other(inputs, labels),
    }
    found: dict[str, Any] = {"epsilon": epsilon}
    for side in ("ours", "theirs") if first else ("theirs", "ours"):
        wall, processor = time.perf_counter(), time.process_time()
        adversarial = runs[side]()
        found[f"{side}_s"] = round(time.perf_counter() - wall, 3)
        found[f"{side}_cpu_s"] = round(time.process_time() - processor, 3)
        # One judge for both: the network as it was loaded, in batches of one size.
        reached = (adversarial - inputs).abs().amax((1, 2, 3)) <= epsilon + 1e-6
        with torch.no_grad():
            right = (subject.graph.module(adversarial.contiguous()).argmax(1) == labels) | ~reached
        found[f"{side}_right"] = right.int().tolist()
    return {**found, "ours_rows": predictor.rows, "theirs_rows": module.rows}


def summary(subject: Subject, epsilon: float, component: str, parts: list[dict[str, Any]]) -> tuple[str, bool]:
    """Return a row of the table, and whether the whole keeps its promise."""
    right = [np.concatenate([part[f"{side}_right"] for part in parts]) for side in ("ours", "theirs")]
    sums = {key: sum(part[key] for part in parts) for key in parts[0] if key.endswith(("_s", "_rows"))}
    equal = float((right[0] == right[1]).mean())
    ratios = np.quantile([part["ours_s"] / part["theirs_s"] for part in parts], [0, 1])
    ratio, processor = sums["ours_s"] / sums["theirs_s"], sums["ours_cpu_s"] / sums["theirs_cpu_s"]
    cells = [
        subject.name,
        f"{epsilon * 255:.3f}/255",
        component,
        str(len(right[0])),
        f"{100 * equal:.1f} %",
        f"{right[0].mean():.3f} / {right[1].mean():.3f}",
        f"{sums['ours_s']:.0f} / {sums['theirs_s']:.0f}",
        f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[1]:.2f})",
        f"{processor:.2f}",
        f"{sums['ours_rows'] / sums['theirs_rows']:.2f}",
    ]
    kept = component not in WHOLE or (equal >= 0.99 and right[0].sum() <= right[1].sum() + 1)
    return "| " + " | ".join(cells) + " |", kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the peer, the network and the results")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--components", nargs="*", default=list(COMPONENTS), choices=COMPONENTS)
    parser.add_argument("--subjects", nargs="*", default=["small", "hardened"], choices=SUBJECTS)
    parser.add_argument("--standing", nargs="*", type=float, default=[0.8, 0.5, 0.2])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    peer = install_peer(given.cache / "peer")
    plan: list[tuple[Subject, float]] = []
    for name in given.subjects:
        if name == "resnet20":
            opened = open_model(given.shared / "models" / "resnet20_cifar10.pt2")
            assert isinstance(opened, Model)
            graph = opened.graph
        else:
            graph = small(name, given.shared, given.cache)
        subject = right_ones(name, graph, given.shared, given.cache, given.samples)
        shares = [] if name == "hardened" else given.standing
        plan += [(subject, epsilon_leaving(subject, share, given.cache)) for share in shares]
        plan += [(subject, 8 / 255)] if name == "hardened" else []
    head = (
        "network | epsilon | attack | pictures | equal verdicts | accuracy | seconds | ours / peer | processor | rows"
    )
    print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}")
    failed = False
    for subject, epsilon in plan:
        for component in given.components:
            parts = []
            for number, start in enumerate(range(0, len(subject.inputs), given.batch)):
                rows = slice(start, min(start + given.batch, len(subject.inputs)))
                key = f"{subject.name} {epsilon} {component} {rows.start} {rows.stop} {given.threads}"
                kept = given.cache / f"duel {key}.json"
                if not kept.exists():
                    kept.write_text(json.dumps(duel(subject, epsilon, component, rows, peer, number % 2 == 0)))
                parts.append(json.loads(kept.read_text()))
            line, held = summary(subject, epsilon, component, parts)
            failed = failed or not held
            print(line, flush=True)
    print(f"\ntorch {torch.__version__}, {given.threads} threads; accuracy and seconds are ours / peer's")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
