"""RobustMQ's study on CIFAR-10-JPEG: quantized ResNets under attacks, corruptions and system noise.

    python benchmarks/robustmq_cifar.py --cache FOLDER [--shared FOLDER] [--out docs/studies/data] [--processes 2]

ResNet-20 is trained on for ten epochs on 10,000 training pictures, once as it is (`tuned`, the float network that all
others are held against) and with the rounds of DoReFa, PACT and LSQ at 2, 4 and 8 bits (LSQ with three seeds), each
from the same float checkpoint; `nearest` quantizes the tuned network to 8 bits without training. All are asked on
1,000 test pictures under corruptions and system noise, on 256 under attacks. Everything is kept in the cache, so that a
killed run goes on; it ends within 150 minutes on two cores. `--full` takes ResNet-56, 6 bits as well, 50,000 and 10,000
pictures, every attack and AutoAttack at all three magnitudes: for a GPU, or days.

Writes one CSV a track, with the key of each cell in the store and the seed, and a summary. Needs the development data.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from csv_table import flat, write_csv
from torch import Tensor, nn

from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.target import Artefact
from seatrial.deploy.torch_target import Torch, open_graph
from seatrial.jobs.measured import Cells
from seatrial.jobs.noises import parse_noise, profile_texts, text_of
from seatrial.jobs.planned import clean_plan, noisy_plan
from seatrial.jobs.qat import qat
from seatrial.jobs.robust_cells import cell_data
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import open_subject
from seatrial.jobs.trainee import AUGMENTS, Lesson, open_trainee
from seatrial.jobs.variants import SIMULATION, OpenVariants, Variant, build
from seatrial.metrics.masking import masking_findings
from seatrial.metrics.summary import summarize
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.train.mix_training import pictures
from seatrial.train.trainable import trainable, trained

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LESSON = Lesson(epochs=10, rate=0.01, weight_decay=1e-4, batch=64, augment="shift-flip")
_ELSEWHERE = ("model", "variant", "target", "metric", "clean")
"""What a table says in other columns, or of the whole."""
LINF = ("0.5/255", "2/255", "8/255")
SYSTEM = (
    *(f"decoder:{name}" for name in ("opencv", "pyav", "turbo-fast-dct", "turbo-plain-chroma", "camera-yuv")),
    *(f"color:{name}" for name in ("yuv444-integer", "nv12-exact", "nv12-integer")),
    *(f"precision:{name}" for name in ("fp16", "bf16")),
    *(f"resize:{name}" for name in ("pillow-nearest", "opencv-bilinear")),
)


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    network: str = "resnet20"
    bits: tuple[int, ...] = (2, 4, 8)
    trained_on: int = 10_000
    pictures: int = 1_000
    attacked: int = 256
    attacks: tuple[str, ...] = (
        *(f"{name}:linf:{size}" for name in ("fgsm", "pgd", "mim") for size in LINF),
        *(f"pgd:linf:{size}:from-float" for size in LINF),
        *(f"square:linf:{size}:200" for size in LINF),
        "pgd:l2:2@224",
        "autoattack:linf:8/255",
    )


FULL = Size(
    "resnet56",
    (2, 4, 6, 8),
    50_000,
    10_000,
    10_000,
    (
        *profile_texts("robustmq", "attack", gradients=True),
        *(f"{name}:linf:{size}:from-float" for name in ("fgsm", "pgd", "mim") for size in LINF),
        *(f"square:linf:{size}" for size in LINF),
    ),
)


@dataclass(frozen=True)
class Learned:
    """A network that learns with its rounds in place."""

    method: str
    bits: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.bits}-seed{self.seed}"


def learned(size: Size) -> list[Learned]:
    """Return the networks to train, the first seed of each first."""
    seeds = {"lsq": (0, 1, 2), "pact": (0,), "dorefa": (0,)}
    found = [
        Learned(method, bits, seed) for method, all_seeds in seeds.items() for bits in size.bits for seed in all_seeds
    ]
    return sorted(found, key=lambda one: one.seed)


def data(size: Size, shared: Path, cache: Path) -> dict[str, Any]:
    return {"data": shared / "cifar10_jpeg_test.tar.xz", "train": cache / "training-pictures"}


def unpack(size: Size, shared: Path, cache: Path) -> None:
    """Put as many training pictures as are needed into a folder, an equal number of each class."""
    folder = data(size, shared, cache)["train"]
    if folder.exists():
        return
    aside = folder.with_name("unpacking")
    left: dict[str, int] = {}
    with tarfile.open(shared / "cifar10_jpeg_train.tar.xz") as archive:
        for member in archive:
            label, name = member.name.split("/")[-2:]
            if name.endswith(".jpg") and left.setdefault(label, size.trained_on // 10):
                left[label] -= 1
                content = archive.extractfile(member)
                assert content is not None
                (aside / label).mkdir(parents=True, exist_ok=True)
                (aside / label / name).write_bytes(content.read())
    aside.rename(folder)


def network(shared: Path, size: Size) -> Path:
    return shared / "models" / f"{size.network}_cifar10.pt2"


def settings_of(size: Size, seed: int = 0) -> Settings:
    return Settings(target=SIMULATION, noise="none", limit=size.pictures, threads=1, seed=seed)


def tune(size: Size, shared: Path, cache: Path) -> None:
    """Train the float network on, as the others are but without rounds, and quantize it without training."""
    if (cache / "tuned" / "done").exists():
        return
    trainee = open_trainee(network(shared, size), settings=settings_of(size), **data(size, shared, cache))
    module = trainable(trainee.graph)

    def loss(part: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(part(inputs), labels)

    shown = pictures(trainee.subject.pipeline, trainee.samples)
    LESSON.training.fit(
        module, shown, trainee.labels, loss, seed=0, checkpoint=cache / "tuned" / "state.ckpt",
        augment=AUGMENTS[LESSON.augment],
    )  # fmt: skip
    write(fold_batch_norm(trainee.graph), cache / "checkpoint" / "float")
    tuned = fold_batch_norm(trained(trainee.graph, module))
    subject = open_subject(
        network(shared, size),
        data(size, shared, cache)["data"],
        Settings(calibration=str(data(size, shared, cache)["train"]), threads=1),
    )
    build(tuned, Torch(), subject.calibration_batches(), cache / "tuned", Settings(bits="w8a8", threads=1))
    (cache / "tuned" / "done").touch()


def write(graph: Graph, path: Path) -> Artefact:
    return Torch().compile(graph, path, bits="float32")


def train(size: Size, shared: Path, cache: Path, one: Learned) -> str:
    """Train one network unless that is done, and return its name."""
    torch.set_num_threads(1)
    folder = cache / one.name
    if not (folder / "qat.json").exists():
        qat(
            network(shared, size), method=one.method, bits=f"w{one.bits}a{one.bits}", placement="weighted",
            lesson=LESSON, out=folder, settings=settings_of(size, one.seed), **data(size, shared, cache),
        )  # fmt: skip
    return one.name


def variants(size: Size, cache: Path) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Return what is asked, each with the columns that name it; the tuned network is the parent of all others."""
    tuned = _artefact(cache / "tuned" / "float-torch.pt2", "float32")
    checkpoint = _artefact(cache / "checkpoint" / "float.pt2", "float32")
    yield Variant("checkpoint", SIMULATION, checkpoint, checkpoint), _columns("checkpoint", "float", 0)
    yield Variant("tuned", SIMULATION, tuned, tuned), _columns("tuned", "float", 0)
    after = _artefact(cache / "tuned" / "w8a8-torch-torch.pt2", "w8a8")
    yield Variant("nearest-8", SIMULATION, after, after, tuned), _columns("nearest", "8", 0)
    for one in learned(size):
        bits = f"w{one.bits}a{one.bits}"
        file = _artefact(cache / one.name / "models" / f"{bits}-torch-torch.pt2", bits)
        yield Variant(one.name, SIMULATION, file, file, tuned), _columns(one.method, str(one.bits), one.seed)


def _columns(method: str, bits: str, seed: int) -> dict[str, Any]:
    return {"method": method, "bits": bits, "seed": seed}


def _artefact(path: Path, bits: str) -> Artefact:
    graph, *_ = open_graph(Artefact(path, "pt2", bits, {}))
    inputs = ",".join(spec.name for spec in graph.inputs)
    return Artefact(path, "pt2", bits, {"device": "cpu", "arithmetic": "as-is", "inputs": inputs})


def ask(size: Size, shared: Path, cache: Path, out: Path, processes: int) -> None:
    """Ask everything of every variant and write the tables."""
    settings = Settings(limit=size.pictures, threads=1, bits="float")
    subject = open_subject(network(shared, size), data(size, shared, cache)["data"], settings, calibrate=False)
    named = list(variants(size, cache))
    opener = OpenVariants(tuple(variant for variant, _ in named), 1)
    base = clean_plan(subject, settings)
    tracks = {
        "system": (SYSTEM, None),
        "corruptions": (profile_texts("robustmq", "corruption", gradients=True), None),
        "attacks": (size.attacks, size.attacked),
    }
    store = Store(cache / "store")
    answered = {}
    for track, (texts, count) in tracks.items():
        plan = noisy_plan(base, tuple(parse_noise(text) for text in texts), count)
        sweep(opener, plan, store, jobs=processes, progress=_told)
        answered[track] = plan, Cells.of(store, plan, opener.variants)
    rows: dict[str, list[dict[str, Any]]] = {track: [] for track in (*tracks, "summary", "masking")}
    for variant, columns in named:
        head = {"network": size.network, "variant": variant.name, **columns}
        tables: dict[Any, Any] = {}
        for track, (plan, cells) in answered.items():
            rng = generator(0, "study", variant.name, track)
            for group in plan.groups:
                entry = cells.found[variant.label, group.spec]
                if group.spec is not None:
                    row = cell_data(size.network, variant, group.spec, cells, (3, 32, 32), rng=rng)
                    told = {key: value for key, value in row.items() if key not in _ELSEWHERE}
                    rows[track].append(head | {"noise": text_of(group.spec)} | flat(told) | {"cell": entry.cell.key})
                if entry.status == "done" and (group.spec is not None or track == "system"):
                    tables[group.spec] = entry.table
                elif entry.status == "no-noise":
                    tables[group.spec] = cells.records(variant.label)
        found = summarize(tables, rng=generator(0, "study", variant.name))
        rows["summary"].append(head | _summary(found))
        rows["masking"] += [head | finding for finding in masking_findings(tables)]
    for track, table in rows.items():
        write_csv(out / f"robustmq_{size.network}_{track}.csv", table)


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    row = {name: found[name] for name in ("clean", "NR", "mCE", "relative_mCE")}
    for name in ("clean", "NR", "mCE"):
        bounds = found["intervals"].get(name)
        row |= {f"{name}_low": bounds and bounds["low"], f"{name}_high": bounds and bounds["high"]}
    return row | {f"WCAR_{name}": value for name, value in found["WCAR"].items()}


def _told(done: int, total: int, name: str) -> None:
    print(f"{done} of {total}: {name}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for networks and cells")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "studies" / "data")
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    size = FULL if given.full else Size()
    cache = given.cache / size.network
    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    unpack(size, given.shared, cache)
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        first = pool.submit(tune, size, given.shared, cache)
        for name in pool.map(partial(train, size, given.shared, cache), learned(size)):
            print(f"trained {name}", file=sys.stderr, flush=True)
        first.result()
    ask(size, given.shared, cache, given.out, given.processes)


if __name__ == "__main__":
    main()
