"""Do alternated and separate latencies agree? ResNet-18 (random weights), float32 and bf16, on the runtimes installed.

    .venv/bin/python benchmarks/stopwatch.py [--repeats 5] [--threads 2] [--tolerance 0.1]

Each repeat measures every subject alone, then all in alternation, and takes the ratio; the median ratio of the repeats
must lie within the tolerance. Ends with 1 where it does not. On a machine with other work, raise the repeats.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from seatrial.core.graph import capture
from seatrial.core.target import Target
from seatrial.deploy.machine import this_machine
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.stopwatch import Stopwatch, Subject


def subjects(folder: Path) -> dict[str, Subject]:
    """Compile the network for every runtime and float type that this machine has."""
    import timm

    torch.manual_seed(0)
    graph = capture(timm.create_model("resnet18", pretrained=False), torch.rand(2, 3, 224, 224))
    targets: list[tuple[Target, str]] = [(OnnxRuntime(), "float32")]
    if OpenVino.installed():
        targets += [(OpenVino(), bits) for bits in OpenVino().precisions]
    made = {}
    for target, bits in targets:
        name = f"{target.name} {bits}"
        made[name] = Subject(target.name, target.compile(graph, folder / name.replace(" ", "-"), bits=bits))
    return made


def main() -> int:
    """Print one row a subject and batch size: median ratio of alternated to separate, and its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=0.1)
    options = parser.parse_args()
    machine = this_machine(options.threads)
    print(f"{machine.cpu}, {machine.cores} cores, {options.threads} threads, {', '.join(machine.instruction_sets)}")
    stopwatch = Stopwatch(most_s=5.0)
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        made = subjects(Path(folder))
        batches = (1, 8)
        ratios: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in made for batch in batches}
        medians: dict[tuple[str, int], list[float]] = {key: [] for key in ratios}
        for _ in range(options.repeats):
            alone = [
                stopwatch.measure([subject], threads=options.threads, batches=batches)[0] for subject in made.values()
            ]
            together = stopwatch.measure(list(made.values()), threads=options.threads, batches=batches)
            for name, one, other in zip(made, alone, together, strict=True):
                for a, b in zip(one.latency, other.latency, strict=True):
                    ratios[name, a.batch].append(b.median / a.median)
                    medians[name, a.batch].append(b.median)
    print("subject | batch | ms | alternated / separate | range")
    for (name, batch), told in ratios.items():
        ratio = float(np.median(told))
        print(
            f"{name} | {batch} | {np.median(medians[name, batch]):.2f} | {ratio:.3f} | {min(told):.2f}..{max(told):.2f}"
        )
        if abs(ratio - 1) > options.tolerance:
            broken.append(f"{name}, batch {batch}")
    print("agree" if not broken else f"do not agree: {'; '.join(broken)}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
