"""Mask-guided quantization estimation (MQE) against the direct measure on trained networks.

    python benchmarks/mqe.py [--shared FOLDER] [--models NAME ...] [--precisions w8a8 w4a8 w4a4] [--samples N] [--full]

A group is one operator: the round of its weight and those of the tensors that it reads. Prints, for each network,
kind of inputs and precision, Spearman's rank correlation over all groups between MQE and the direct measure on real
pictures (the row `all` ranks all groups in all precisions together), and the seconds that each took for all precisions.
Gaussian and distilled inputs tell how much is lost without data; distilled ones need batch norms. The ranges of the
grids come from real pictures in all rows. Needs the development data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from csv_table import print_table
from scipy.stats import spearmanr
from torch import fx

from seatrial.core.carrying import carries
from seatrial.core.chance import generator
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.predictor import Inputs
from seatrial.core.realise import tensor_inputs
from seatrial.core.recipe import Recipe
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.data.draw import limit
from seatrial.data.files import open_data
from seatrial.errors import BadInput
from seatrial.jobs.subject import load_batches
from seatrial.models.opened import Model, open_model
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.numerics.observe import tensors_of
from seatrial.quant.direct_sensitivity import direct, ranked
from seatrial.quant.mask_guided import MaskGuided
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place
from seatrial.quant.synthetic_inputs import distilled, gaussian

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = {
    "resnet20_cifar10": 256,
    "resnet56_cifar10": 128,
    "vit_cifar10": 32,
    "etinynet_imagenet": 32,
    "mobilenet_v1_025_imagenet": 32,
    "squeezenet1_1_imagenet": 48,
    "mobilenet_v2_imagenet": 32,
    "stories260k": 32,
}
"""Networks and on how many samples they are asked."""
RULES = PlacementRules(
    "openvino",
    "by-range",
    operator_outputs=False,
    attention_products="all",
    linear_sign="unsigned",
    products_around_zero=True,
)
SUMMED = {"add", "mul", "mean", "adaptive_avg_pool2d", "avg_pool2d", "matmul", "bmm"}


def groups_of(graph: Graph, sites: set[Site]) -> dict[str, frozenset[Site]]:
    """Return one group for each operator that has a rounded weight or joins or averages rounded tensors."""
    names = {node: name for name, node in operators(graph).items()}

    def read(reader: fx.Node, value: fx.Node) -> set[Site]:
        if value not in names:
            return set()
        edge = site_of(names[reader], f"input{tensor_inputs(reader).index(value)}")
        found = {edge, site_of(names[value], "output")} & sites
        if found or not (carries(value) or op_name(value) == "cat"):
            return found
        return {site for part in tensor_inputs(value) for site in read(value, part)}

    groups: dict[str, frozenset[Site]] = {}
    for node, name in names.items():
        weight = {site_of(name, "weight")} & sites
        if weight or op_name(node) in SUMMED:
            values = tensor_inputs(node)[:1] if weight else tensor_inputs(node)
            found = weight.union(*(read(node, value) for value in values))
            if found:
                groups[name] = frozenset(found)
    return groups


def opened(shared: Path, name: str, count: int) -> tuple[Graph, Sequence[Inputs], Inputs]:
    """Return a network's graph as captured, calibration batches, and real inputs to ask with."""
    if name == "stories260k":
        model = open_model(f"hf:{shared / 'models' / name}")
        assert isinstance(model, Model)
        lines = (shared / "models" / name / "sampled_stories.jsonl").read_text().splitlines()
        rows = [row[:64] for row in (json.loads(line)["ids"] for line in lines) if len(row) >= 64]
        ids = torch.tensor(rows[: count + 32])
        inputs = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in (ids[-32:], ids[:count])]
        return model.graph, inputs[:1], inputs[1]
    model = open_model(shared / "models" / f"{name}.pt2")
    assert isinstance(model, Model)
    if "cifar" in name:
        arrays = np.load(shared / "cifar10_lossless.npz")
        pictures = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
        train = torch.from_numpy(arrays["split"] == "train")
        return model.graph, list(pictures[train][:128].split(64)), pictures[~train][:count]
    real = limit(open_data(shared / "imagenet_val_800"), count, seed=1)
    calibration = limit(open_data(shared / "imagenet_original_120"), 32, seed=0)
    asked, known = load_batches(real, model.picture_pipeline), load_batches(calibration, model.picture_pipeline)
    return model.graph, list(known), torch.cat(asked)


def timed(work: Callable[[], dict[tuple[str, str], float]]) -> tuple[dict[tuple[str, str], float], float]:
    """Return what `work` returns and how many seconds it took."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def rows(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the lines of the table for one network."""
    count = options.samples or MODELS[name]
    captured, calibration, real = opened(options.shared, name, count)
    graph = fold_batch_norm(captured)
    recipes: dict[str, Recipe] = {}
    groups: dict[str, dict[str, frozenset[Site]]] = {}
    for precision in options.precisions:
        asked = place(graph, RULES, Bits.parse(precision))
        recipes[precision] = Nearest().plan(graph, calibration, asked, rng=generator(0, "nearest"))
        for group, sites in groups_of(graph, set(asked)).items():
            groups.setdefault(group, {})[precision] = sites
    oracle, direct_s = timed(lambda: direct(graph, recipes, groups, real))
    worst = ranked(oracle)[0]
    inputs: dict[str, Callable[[], Inputs]] = {"real": lambda: real}
    if options.full:
        inputs["Gaussian"] = lambda: gaussian(graph, count, rng=generator(0, "gaussian"))
        inputs["distilled"] = lambda: distilled(captured, min(count, 16), rng=generator(0, "distilled"), steps=100)
    table = []
    for kind, make in inputs.items():
        try:
            batch = make()
        except BadInput as error:
            print(f"{name}: no {kind} inputs: {error}")
            continue
        samples = len(tensors_of(graph, batch)[0])
        found, mqe_s = timed(lambda batch=batch: MaskGuided().estimate(graph, recipes, groups, batch, rng=generator(0)))
        for precision in (*options.precisions, "all"):
            keys = [key for key in oracle if precision in (key[1], "all")]
            rank = float(spearmanr([oracle[key] for key in keys], [found[key] for key in keys])[0])  # pyright: ignore[reportArgumentType]
            seconds = [f"{direct_s:.1f}", f"{mqe_s:.1f}"] if precision == "all" else ["", ""]
            most = f"{worst.group} {worst.precision}" if precision == "all" else ""
            table.append([name, kind, str(samples), precision, str(len(keys)), f"{rank:.3f}", *seconds, most])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--precisions", nargs="*", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--samples", type=int, default=None, help="ask on as many samples of every network")
    parser.add_argument("--full", action="store_true", help="estimate on Gaussian and distilled inputs too")
    options = parser.parse_args()
    table = [row for name in options.models for row in rows(name, options)]
    heads = ["model", "inputs", "samples", "precision", "groups", "Spearman", "direct s", "MQE s", "most sensitive"]
    print_table(heads, table)


if __name__ == "__main__":
    main()
