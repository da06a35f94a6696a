"""The four corruptions against imagecorruptions 1.1.2: time for a picture, and how far the pictures differ.

imagecorruptions does not run beside current libraries (numpy 2 has no `float_`, and setuptools no `pkg_resources`), so
this script makes an environment of its own for it; `--env` keeps that. A server process in each environment corrupts
on request, and requests alternate, so that the neighbors of a shared machine slow both; the clock counts processor
time, which they disturb least. The random corruptions are compared at a common angle (motion_blur) and by their
moments (gaussian_noise).

    python benchmarks/corruptions.py [--env FOLDER] [--pairs 5] [--pictures 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEER = [
    "numpy==1.26.4",
    "scipy==1.11.4",
    "scikit-image==0.20.0",
    "opencv-python-headless==4.11.0.86",
    "pillow>=10",
    "setuptools<80",
]
NAMES = ["gaussian_noise", "motion_blur", "brightness", "jpeg_compression"]
ANGLE_DEG = 17.0


def pictures(count: int, side: int = 224) -> list[np.ndarray]:
    """Smooth and noisy pictures made by a formula, so that nothing has to be downloaded and both sides see the same."""
    y, x = np.mgrid[:side, :side] / side
    made = []
    for i in range(count):
        waves = [np.sin(2 * np.pi * ((1 + i % 5) * x * (c + 1) + (1 + i % 3) * y)) for c in range(3)]
        texture = np.random.Generator(np.random.Philox(i)).normal(0, 12, (side, side, 3))
        made.append(np.clip(127 + 110 * np.stack(waves, -1) + texture, 0, 255).astype(np.uint8))
    return made


def ours() -> Callable[[str, int, np.ndarray], np.ndarray]:
    from seatrial.noise.brightness import Brightness
    from seatrial.noise.gaussian_noise import GaussianNoise
    from seatrial.noise.jpeg_compression import JpegCompression
    from seatrial.noise.motion_blur import MotionBlur

    class AtAngle(np.random.Generator):
        def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
            return ANGLE_DEG

    rng = AtAngle(np.random.Philox(0))
    methods = dict(zip(NAMES, (GaussianNoise, MotionBlur, Brightness, JpegCompression)))
    return lambda name, severity, picture: methods[name](severity=severity).corrupt(picture, rng=rng)


def theirs() -> Callable[[str, int, np.ndarray], np.ndarray]:
    import warnings

    warnings.filterwarnings("ignore")
    import imagecorruptions  # pyright: ignore[reportMissingImports]

    np.random.seed(0)  # noqa: NPY002
    np.random.uniform = lambda low, high: ANGLE_DEG  # type: ignore[assignment]
    return lambda name, severity, picture: imagecorruptions.corrupt(picture, severity, name)


def serve(side: str, count: int) -> None:
    """Answer requests `[name, severity]` from stdin with the processor milliseconds a picture takes, one line each."""
    corrupt, subjects = (ours() if side == "ours" else theirs()), pictures(count)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, severity, keep = json.loads(line)
        start = time.process_time()
        results = [corrupt(name, severity, picture) for picture in subjects]
        spent_ms = 1000 * (time.process_time() - start) / count
        if keep:
            np.save(keep, np.stack(results))
        print(json.dumps(spent_ms), flush=True)


class Server:
    """A process that corrupts on request."""

    def __init__(self, python: Path | str, side: str, count: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": root if side == "ours" else ""}
        command = [str(python), __file__, "--serve", side, "--pictures", str(count)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server ended; its message stands above")
        return json.loads(line)

    def time_ms(self, name: str, severity: int, keep: Path | None = None) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, severity, keep and str(keep)]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def peer_python(folder: Path) -> Path:
    """Make the environment of imagecorruptions in `folder`, once, and return its Python."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PEER], check=True)
        subprocess.run([*pip, "--no-deps", "imagecorruptions==1.1.2"], check=True)  # it asks for OpenCV with windows
        (folder / "ready").touch()
    return python


def difference(name: str, mine: np.ndarray, peers: np.ndarray) -> str:
    if name == "gaussian_noise":
        return f"mean {mine.mean():.2f} / {peers.mean():.2f}, deviation {mine.std():.2f} / {peers.std():.2f}"
    off = np.abs(mine.astype(int) - peers)
    return f"largest {off.max()}, unequal {(off > 0).mean():.3%}"


def machine() -> str:
    """Return one line that says where this was measured."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    chip = found[0].split(":")[1].strip() if found else platform.processor()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = f"Python {platform.python_version()}, numpy {np.__version__} (peer: {PEER[0]}, {PEER[2]})"
    return f"{chip}, {os.cpu_count()} cores; {versions}; load average at the end {load}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--env", type=Path, help="a folder for the peer's environment, kept; without it a temporary one"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--serve", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.pictures)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        python = peer_python(given.env or Path(scratch, "peer"))
        servers = Server(sys.executable, "ours", given.pictures), Server(python, "theirs", given.pictures)
        print("| corruption | severity | ours, ms | peer, ms | ours / peer (p10 to p90) | difference, ours / peer |")
        print("|---|---|---|---|---|---|")
        for name in NAMES:
            for severity in (1, 3, 5):
                kept = [Path(scratch, f"{side}.npy") for side in (0, 1)]
                for server, file in zip(servers, kept):
                    server.time_ms(name, severity, file)
                times = np.empty((2, given.pairs))
                for run in range(given.pairs):
                    for side in (0, 1) if run % 2 else (1, 0):
                        times[side, run] = servers[side].time_ms(name, severity)
                ratio = np.quantile(times[0] / times[1], [0.5, 0.1, 0.9])
                median = np.median(times, axis=1)
                spread = f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
                unlike = difference(name, *(np.load(file) for file in kept))
                print(f"| {name} | {severity} | {median[0]:.2f} | {median[1]:.2f} | {spread} | {unlike} |", flush=True)
        for server in servers:
            server.close()
    print(f"\n{machine()}; {given.pairs} pairs of {given.pictures} pictures of 224 x 224, processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
