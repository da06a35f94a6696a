"""The 19 corruptions against imagecorruptions 1.1.2: time for a picture, and whether the pictures agree.

imagecorruptions does not run beside current libraries (numpy 2 has no `float_`, and setuptools no `pkg_resources`), so
this script makes an environment of its own for it; `--env` keeps that. A server process in each environment corrupts
on request, on one thread; requests alternate, so that the neighbors of a shared machine slow both, and the clock counts
processor time, which they disturb least.

In the peer two things are mended, because it fails otherwise or nobody would wait: scikit-image lost an argument of
`gaussian` that it passes, and the scan of glass_blur is compiled with numba, as its unreleased version does (`--slow`
times the released one). Where the peer differs from the generator of ImageNet-C, which ours follows, pictures are
compared after a change of one line (zoom_blur trims evenly, pixelate enlarges with boxes) and elastic_transform in its
variant `imagecorruptions`; times are the peer's own and those of our default.

Agreement of what draws nothing (or its angle alone, motion_blur) is the largest difference in grey levels. Of the
others, `--draws` results for one picture are summed up by the mean and deviation of what changed, the mean steps
between neighbors across and down, and two quantiles; the two sides' sums are compared by two-sample Kolmogorov-Smirnov
tests, and the least p of the six, times six, is given for each severity.

    python benchmarks/corruptions.py [--env FOLDER] [--pairs 5] [--pictures 10] [--draws 200] [--slow]
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
    "numba==0.60.0",
    "pillow>=10",
    "setuptools<80",
]
BENCHMARK = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
]
NAMES = [*BENCHMARK, "speckle_noise", "gaussian_blur", "spatter", "saturate"]
DRAWN = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "snow", "frost", "fog"),
    *("elastic_transform", "spatter"),
}
SEVERITIES = (1, 2, 3, 4, 5)
ANGLE_DEG = 17.0
Corrupt = Callable[[str, int, np.ndarray], np.ndarray]


def pictures(count: int, side: int = 224) -> list[np.ndarray]:
    """Smooth and noisy pictures made by a formula, so that nothing has to be downloaded and both sides see the same."""
    y, x = np.mgrid[:side, :side] / side
    made = []
    for i in range(count):
        waves = [np.sin(2 * np.pi * ((1 + i % 5) * x * (c + 1) + (1 + i % 3) * y)) for c in range(3)]
        texture = np.random.Generator(np.random.Philox(i)).normal(0, 12, (side, side, 3))
        made.append(np.clip(127 + 110 * np.stack(waves, -1) + texture, 0, 255).astype(np.uint8))
    return made


def ours() -> tuple[Corrupt, Corrupt]:
    """Return our corruptions as they are, and as they can be compared with the peer's."""
    from seatrial import catalogue

    class AtAngle(np.random.Generator):
        def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
            return ANGLE_DEG

    rng = np.random.Generator(np.random.Philox(0))
    options: dict[str, dict[str, str]] = {
        "elastic_transform": {"variant": "imagecorruptions"},
        "glass_blur": {"mode": "reference"},
        "frost": {"mode": "reference"},
    }

    def plain(name: str, severity: int, picture: np.ndarray) -> np.ndarray:
        return catalogue.make("corruption", name, severity=severity).corrupt(picture, rng=rng)

    def alike(name: str, severity: int, picture: np.ndarray) -> np.ndarray:
        method = catalogue.make("corruption", name, severity=severity, **options.get(name, {}))
        return method.corrupt(picture, rng=AtAngle(np.random.Philox(0)) if name == "motion_blur" else rng)

    return plain, alike


def theirs(slow: bool) -> tuple[Corrupt, Corrupt]:
    """Return the peer's corruptions as they are, and as they can be compared with ours."""
    import warnings

    warnings.filterwarnings("ignore")
    import numba  # pyright: ignore[reportMissingImports]
    from imagecorruptions import corrupt, corruptions  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from skimage.filters import gaussian  # pyright: ignore[reportMissingImports]

    def gaussian_of_old(image: Any, sigma: Any, multichannel: bool = False, **others: Any) -> Any:
        return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **others)

    @numba.njit
    def scan(pixels: Any, reach: int, passes: int) -> None:
        for _ in range(passes):
            for h in range(pixels.shape[0] - reach, reach, -1):
                for w in range(pixels.shape[1] - reach, reach, -1):
                    dx, dy = np.random.randint(-reach, reach), np.random.randint(-reach, reach)  # noqa: NPY002
                    for c in range(3):  # rows of an array are views, so that their exchange copies
                        pixels[h, w, c] = pixels[h + dy, w + dx, c]

    def glass_blur(picture: Any, severity: int) -> Any:
        sigma, reach, passes = [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][severity - 1]
        pixels = np.uint8(gaussian_of_old(np.array(picture) / 255.0, sigma, multichannel=True) * 255)
        scan(pixels, reach, passes)
        return np.clip(gaussian_of_old(pixels / 255.0, sigma, multichannel=True), 0, 1) * 255

    corruptions.gaussian = gaussian_of_old
    zoom = corruptions.clipped_zoom

    def trimmed(image: Any, factor: float) -> Any:
        wide, side = zoom(image, factor), 224
        top = (wide.shape[0] - side) // 2
        return wide[top : top + side, top : top + side]

    def plain(name: str, severity: int, picture: np.ndarray) -> np.ndarray:
        if name == "glass_blur" and not slow:
            return np.uint8(glass_blur(picture, severity))
        return corrupt(picture, severity, name)

    def alike(name: str, severity: int, picture: np.ndarray) -> np.ndarray:
        drawn = np.random.uniform
        if name == "motion_blur":
            np.random.uniform = lambda low, high: ANGLE_DEG  # type: ignore[assignment]
        corruptions.clipped_zoom = trimmed
        nearest, Image.NEAREST = Image.NEAREST, Image.BOX
        try:
            return plain(name, severity, picture)
        finally:
            np.random.uniform, corruptions.clipped_zoom, Image.NEAREST = drawn, zoom, nearest

    np.random.seed(0)  # noqa: NPY002
    return plain, alike


def sums(result: np.ndarray, picture: np.ndarray) -> list[float]:
    """Return six numbers that sum up what a corruption did to a picture."""
    value = result.astype(np.int16)
    change = value - picture
    steps = [float(np.abs(np.diff(value, axis=axis)).mean()) for axis in (0, 1)]
    ranks = np.cumsum(np.bincount(result.ravel(), minlength=256)) / result.size
    tenths = [float(np.interp(share, ranks, np.arange(256))) for share in (0.1, 0.9)]
    return [float(change.mean()), float(change.std()), *steps, *tenths]


def serve(side: str, count: int, draws: int, slow: bool) -> None:
    """Answer requests `[what, name, severity, file]` from stdin, one line each.

    `time` gives the processor milliseconds a picture takes, `keep` saves the results of all pictures, `draw` the sums
    of many results of one.
    """
    import cv2

    cv2.setNumThreads(1)
    (plain, alike), subjects = (ours() if side == "ours" else theirs(slow)), pictures(count)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        what, name, severity, file = json.loads(line)
        start = time.process_time()
        if what == "keep":
            np.save(file, np.stack([alike(name, severity, picture) for picture in subjects]))
        elif what == "draw":
            np.save(file, [sums(alike(name, severity, subjects[0]), subjects[0]) for _ in range(draws)])
        else:
            for picture in subjects:
                plain(name, severity, picture)
        print(json.dumps(1000 * (time.process_time() - start) / count), flush=True)


class Server:
    """A process that corrupts on request."""

    def __init__(self, python: Path | str, side: str, given: argparse.Namespace, more: Path | None = None) -> None:
        places = [str(Path(__file__).resolve().parents[1]), str(more)] if side == "ours" else []
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **one, "PYTHONPATH": os.pathsep.join(places)}
        command = [str(python), __file__, "--serve", side, "--pictures", str(given.pictures)]
        command += ["--draws", str(given.draws), *(["--slow"] if given.slow else [])]
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

    def ask(self, what: str, name: str, severity: int, file: Path | None = None) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, name, severity, file and str(file)]) + "\n")
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


def with_frost(python: Path, folder: Path) -> Path:
    """Return a folder in which our side finds the peer's pictures of frost, and nothing else of its environment."""
    found = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    folder.mkdir()
    for part in Path(found.stdout.strip()).glob("imagecorruptions*"):
        (folder / part.name).symlink_to(part)
    return folder


def agreement(name: str, severity: int, servers: tuple[Server, Server], files: list[Path]) -> float:
    """Return the largest difference in levels, or of what is drawn the corrected p of equal distributions."""
    from scipy.stats import ks_2samp

    for server, file in zip(servers, files):
        server.ask("draw" if name in DRAWN else "keep", name, severity, file)
    mine, peers = (np.load(file) for file in files)
    if name not in DRAWN:
        return float(np.abs(mine.astype(int) - peers).max())
    return min(1.0, mine.shape[1] * min(ks_2samp(mine[:, i], peers[:, i]).pvalue for i in range(mine.shape[1])))


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
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--slow", action="store_true", help="the peer's glass_blur as released, in plain Python")
    parser.add_argument("--serve", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.pictures, given.draws, given.slow)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        python = peer_python(given.env or Path(scratch, "peer"))
        frost = with_frost(python, Path(scratch, "frost"))
        servers = Server(sys.executable, "ours", given, frost), Server(python, "theirs", given)
        files = [Path(scratch, f"{side}.npy") for side in (0, 1)]
        print("| corruption | ours, ms | peer, ms | ours / peer, by severity | agreement, by severity |")
        print("|---|---|---|---|---|")
        total = np.zeros(2)
        for name in NAMES:
            medians, agreed = np.empty((2, len(SEVERITIES))), []
            for severity in SEVERITIES:
                agreed.append(agreement(name, severity, servers, files))
                times = np.empty((2, given.pairs))
                for server in servers:
                    server.ask("time", name, severity)
                for run in range(given.pairs):
                    for side in (0, 1) if run % 2 else (1, 0):
                        times[side, run] = servers[side].ask("time", name, severity)
                medians[:, severity - 1] = np.median(times, axis=1)
            mean = medians.mean(1)
            total += mean * (name in BENCHMARK)
            ratios = " ".join(f"{ratio:.2f}" for ratio in medians[0] / medians[1])
            kind, form = ("p", ".2g") if name in DRAWN else ("levels", ".0f")
            shown = f"{kind}: " + " ".join(format(value, form) for value in agreed)
            print(f"| {name} | {mean[0]:.2f} | {mean[1]:.2f} | {ratios} | {shown} |", flush=True)
        for server in servers:
            server.close()
    print(f"| the 15 of the benchmark | {total[0]:.1f} | {total[1]:.1f} | {total[0] / total[1]:.3f} | |")
    print(f"\n{machine()}; {given.pairs} pairs of {given.pictures} pictures of 224 x 224, processor time, one thread")
    return 0


if __name__ == "__main__":
    sys.exit(main())
