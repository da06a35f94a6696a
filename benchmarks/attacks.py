"""FGSM, PGD, MIM and Square against torchattacks 3.5.1 and foolbox 3.3.4: time, and the accuracy that is left.

The peers are installed on demand, without their dependencies (torchattacks wants a requests of 2021), into a folder of
their own; `--peers` keeps it. Ours and a peer alternate in one process, so that the neighbors of a shared machine
slow both, and the clock counts processor time, which they disturb least. Exits with 1 where FGSM, PGD or MIM leave
another accuracy than a peer, beyond twice the sampling error. In L2 both start from the picture: random starts of
torchattacks have a uniform radius, ours are uniform in the ball, so nearly all at its surface, as foolbox's.

    python benchmarks/attacks.py [--peers FOLDER] [--pairs 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.noise import Attack
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.noise.fgsm import FGSM
from seatrial.noise.mim import MIM
from seatrial.noise.pgd import PGD
from seatrial.noise.square import Square

PEERS = [
    "torchattacks==3.5.1",
    "foolbox==3.3.4",
    "eagerpy==0.30.0",
    "GitPython==3.1.45",
    "gitdb==4.0.12",
    "smmap==5.0.2",
]

_L2_RADII = 24.0
"""L2 budgets, in L-inf ones: about as strong on pictures of 32 pixels."""


class Eager(Predictor):
    """An eager module seen through its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def gives(self) -> frozenset[Gift]:
        return frozenset({"gradients", "logits"})

    def __call__(self, inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return self._module(inputs)


@dataclass(frozen=True)
class Subject:
    """A model, the pictures it is attacked on, and the budgets; `trained` says whether its accuracy means anything."""

    name: str
    module: nn.Module
    inputs: Tensor
    labels: Tensor
    epsilon: float
    square_epsilon: float
    trained: bool


@dataclass(frozen=True)
class Duel:
    """One attack, ours and a peer's: processor milliseconds of each run, and which samples are still right."""

    name: str
    peer: str
    ours_ms: np.ndarray
    theirs_ms: np.ndarray
    ours_right: np.ndarray
    theirs_right: np.ndarray

    def agrees(self) -> bool:
        """Whether the two accuracies differ by at most twice the paired sampling error, or by one sample."""
        only_ours = int((self.ours_right & ~self.theirs_right).sum())
        only_theirs = int((self.theirs_right & ~self.ours_right).sum())
        return abs(only_ours - only_theirs) <= max(1.0, 2 * math.sqrt(only_ours + only_theirs))


def install_peers(folder: Path) -> None:
    """Install the peers into `folder`, once, and let Python find them after everything else."""
    if not (folder / "torchattacks").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEERS]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))


def trained_digits() -> Subject:
    """A small convolutional network on the digits of scikit-learn, enlarged to 32 pixels, and 97 pictures kept."""
    data = load_digits()
    small = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    inputs = F.interpolate(small, size=(32, 32), mode="bilinear").contiguous()
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(8):
        for batch in torch.randperm(1600).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return Subject("small CNN, 32 px, batch 97", module.eval(), inputs[1700:], labels[1700:], 0.02, 0.06, True)


def random_resnet() -> Subject:
    """ResNet-18 with random weights at 64 pixels: what an attack costs beside a heavier forward pass."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    module = resnet18(weights=None).eval()
    inputs = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        labels = module(inputs).argmax(1)
    return Subject("ResNet-18, random, 64 px, batch 4", module, inputs, labels, 0.5 / 255, 0.5 / 255, False)


def duel(name: str, peer: str, subject: Subject, ours: Attack, theirs: Callable[[], Tensor], pairs: int) -> Duel:
    """Run both `pairs` times in turn, the first alternating, after one warm-up each."""
    predictor = Eager(subject.module)
    rng = [[generator(run, name, i) for i in range(len(subject.inputs))] for run in range(pairs + 1)]

    def we(run: int) -> Tensor:
        return ours.perturb(predictor, subject.inputs, subject.labels, rng=rng[run]).inputs

    found = we(pairs), theirs()
    times = np.empty((2, pairs))
    for run in range(pairs):
        for side in (0, 1) if run % 2 else (1, 0):
            start = time.process_time()
            _ = theirs() if side else we(run)
            times[side, run] = 1000 * (time.process_time() - start)
    with torch.no_grad():
        right = [(subject.module(inputs).argmax(1) == subject.labels).numpy() for inputs in found]
    return Duel(name, peer, times[0], times[1], right[0], right[1])


def duels(subject: Subject, pairs: int, queries: int) -> list[Duel]:
    """Return every attack that a peer has, at equal settings and equal numbers of forward passes."""
    torchattacks = importlib.import_module("torchattacks")
    foolbox = importlib.import_module("foolbox")
    module, inputs, labels, epsilon = subject.module, subject.inputs, subject.labels, subject.epsilon
    wrapped = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    ta_fgsm = torchattacks.FGSM(module, eps=epsilon)
    ta_pgd = torchattacks.PGD(module, eps=epsilon, alpha=3 / 40 * epsilon, steps=20)
    ta_mim = torchattacks.MIFGSM(module, eps=epsilon, alpha=3 / 40 * epsilon, steps=20, decay=1.0)
    ta_square = torchattacks.Square(module, eps=subject.square_epsilon, n_queries=queries)
    wide = _L2_RADII * epsilon
    ta_pgd_l2 = torchattacks.PGDL2(module, eps=wide, alpha=3 / 40 * wide, steps=20, random_start=False)
    ta_square_l2 = torchattacks.Square(module, norm="L2", eps=_L2_RADII * subject.square_epsilon, n_queries=queries)
    fb_fgsm = foolbox.attacks.LinfFastGradientAttack()
    fb_pgd = foolbox.attacks.LinfPGD(rel_stepsize=3 / 40, steps=20)
    pgd, early = PGD(epsilon=epsilon), PGD(epsilon=epsilon, stop_early=True)

    def run_foolbox(attack: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[[], Tensor]:
        return lambda: attack(wrapped, inputs, labels, epsilons=epsilon)[1]

    # torchattacks asks once for the clean pictures, once for the stripes and once for the result.
    square = Square(epsilon=subject.square_epsilon, queries=queries + 2)
    square_l2 = Square(epsilon=_L2_RADII * subject.square_epsilon, norm="l2", queries=queries + 2)
    pgd_l2, mim = PGD(epsilon=wide, norm="l2", random_start=False), MIM(epsilon=epsilon, random_start=False)
    plan: list[tuple[str, str, Attack, Callable[[], Tensor]]] = [
        ("FGSM", "torchattacks", FGSM(epsilon=epsilon), lambda: ta_fgsm(inputs, labels)),
        ("FGSM", "foolbox", FGSM(epsilon=epsilon), run_foolbox(fb_fgsm)),
        ("PGD-20", "torchattacks", pgd, lambda: ta_pgd(inputs, labels)),
        ("PGD-20", "foolbox", pgd, run_foolbox(fb_pgd)),
        ("PGD-20, stop_early", "torchattacks", early, lambda: ta_pgd(inputs, labels)),
        ("PGD-20 in L2", "torchattacks", pgd_l2, lambda: ta_pgd_l2(inputs, labels)),
        ("MIM-20", "torchattacks", mim, lambda: ta_mim(inputs, labels)),
        (f"Square-{queries}", "torchattacks", square, lambda: ta_square(inputs, labels)),
        (f"Square-{queries} in L2", "torchattacks", square_l2, lambda: ta_square_l2(inputs, labels)),
    ]
    return [duel(name, peer, subject, ours, theirs, pairs) for name, peer, ours, theirs in plan]


def machine(threads: int) -> str:
    """Return one line that says where this was measured."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    chip = found[0].split(":")[1].strip() if found else platform.processor()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{chip}, {os.cpu_count()} cores, {threads} threads used; {versions}; load average at the end {load}"


def row(one: Duel, subject: Subject) -> str:
    ratio = np.quantile(one.ours_ms / one.theirs_ms, [0.5, 0.1, 0.9])
    accuracy = f"{one.ours_right.mean():.3f} / {one.theirs_right.mean():.3f}" if subject.trained else "–"
    figures = f"{np.median(one.ours_ms):.1f} | {np.median(one.theirs_ms):.1f}"
    spread = f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
    return f"| {subject.name} | {one.name} | {one.peer} | {figures} | {spread} | {accuracy} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a folder for the peers, kept; without it a temporary one")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="two are slower by far on a machine that is busy")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        install_peers(given.peers or Path(scratch))
        print("| model | attack | peer | ours, ms | peer, ms | ours / peer (p10 to p90) | accuracy, ours / peer |")
        print("|---|---|---|---|---|---|---|")
        failed = []
        for subject, queries in ((trained_digits(), 300), (random_resnet(), 60)):
            for one in duels(subject, given.pairs, queries):
                print(row(one, subject), flush=True)
                if subject.trained and not one.name.startswith("Square") and not one.agrees():
                    failed.append(f"{one.name} and {one.peer}")
    print(f"\n{machine(given.threads)}; {given.pairs} pairs, processor time")
    for names in failed:
        print(f"another accuracy, beyond twice the sampling error: {names}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
