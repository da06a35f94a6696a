"""What W8A8 by `nearest` costs in accuracy on trained networks, simulated and deployed.

    python benchmarks/w8a8_accuracy.py [--shared FOLDER] [--models NAME ...] [--limit N]

Each model goes through `seatrial.trial` (no noise) on OpenVINO and ONNX Runtime. It is evaluated on all of
imagenet_val_800 and calibrated on imagenet_original_120 (120 training pictures); for CIFAR-10-JPEG, on the 10,000 test
pictures after 256 training pictures. Prints a Markdown table: accuracy of float and W8A8 simulation, drop with the
upper end of its one-sided 95 % paired interval, agreement of the deployed with the simulated model, and the bar. Needs
the development data.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import seatrial

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGENET = "imagenet_val_800", "imagenet_original_120"
CIFAR = "cifar10_jpeg_test.tar.xz", "cifar10_jpeg_train.tar.xz"
# Largest drop and largest upper end, in points; None: shown, not counted (weights are on an 8-bit grid already).
MODELS: dict[str, tuple[tuple[str, str], tuple[float, float] | None]] = {
    "squeezenet1_1_imagenet": (IMAGENET, (1.0, 2.0)),
    "etinynet_imagenet": (IMAGENET, (1.0, 2.0)),
    "mobilenet_v1_025_imagenet": (IMAGENET, (1.0, 2.0)),
    "resnet20_cifar10": (CIFAR, (0.7, 1.0)),
    "resnet56_cifar10": (CIFAR, (0.7, 1.0)),
    "mobilenet_v2_imagenet": (IMAGENET, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--limit", type=int, default=None, help="evaluate on fewer pictures")
    asked = parser.parse_args()
    print("| model | target | n | float | w8a8 | drop | at most | deployed = simulated | bar |")
    print("|---|---|---|---|---|---|---|---|---|")
    notes = []
    for name in asked.models:
        (data, calibration), bar = MODELS[name]
        for target in ("openvino", "onnxruntime"):
            with tempfile.TemporaryDirectory() as folder:
                found = seatrial.trial(
                    asked.shared / "models" / f"{name}.pt2",
                    asked.shared / data,
                    out=Path(folder) / "run",
                    target=target,
                    noise="none",
                    calibration=str(asked.shared / calibration),
                    limit=asked.limit,
                )
            rows = {(row["name"], row["target"]): row for row in found.data["variants"]}
            before, after = rows["float", "torch"]["top1"], rows["w8a8", "torch"]["top1"]
            agreed = rows["w8a8", target]["agreement_simulated"]
            drop, at_most = (before - after) * 100, found.extras["paired"]["w8a8@torch"]["drop_at_most"] * 100
            held = (
                "not counted" if bar is None else "holds" if drop <= bar[0] + 1e-9 and at_most <= bar[1] else "broken"
            )
            print(
                f"| {name} | {target} | {found.data['data']['n']} | {before:.2%} | {after:.2%} | {drop:.2f} | "
                f"{at_most:.2f} | {agreed:.2%} | {held} |",
                flush=True,
            )
            notes += [f"{name} on {target}: {text}" for text in found.data["warnings"] if "to blame" in text]
    for note in notes:
        print(f"\n{note}")


if __name__ == "__main__":
    main()
