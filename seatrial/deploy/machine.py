"""The fingerprint of the machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from seatrial.core.target import Machine

_CPUINFO = Path("/proc/cpuinfo")
# The kernel's names for what decides which kernels a runtime picks; ours on the right.
_FLAGS = {
    "sse4_2": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
_LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "onnxscript", "numpy", "seatrial")


def this_machine(threads: int) -> Machine:
    """Return the CPU, instruction sets, memory, system, GPUs and library versions of this machine.

    `cores` are those that this process may use, `threads` those that a measurement used. GPUs are asked of the driver,
    so that torch is not loaded for it.
    """
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        threads=threads,
        instruction_sets=tuple(sorted(cpu_features())),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpus=_gpus(),
        libraries=_versions(),
    )


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the instruction sets that matter to neural networks; empty where the system does not tell."""
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(_FLAGS[flag] for flag in value.split() if flag in _FLAGS)
    if platform.machine().lower() in ("arm64", "aarch64"):
        return frozenset({"neon"})
    return frozenset()


def is_x86() -> bool:
    """Return whether this is an x86 processor."""
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def weight_bits_cap() -> int:
    """Return 7 where 8-bit weights make the runtime's kernels saturate, else 8.

    x86 without VNNI multiplies u8 by s8 into saturating 16 bits (vpmaddubsw): 255 * 127 * 2 does not fit, 255 * 63 * 2
    does. An x86 system that does not tell its features is taken as one without.
    """
    return 7 if is_x86() and not cpu_features() & {"avx512_vnni", "avx_vnni", "amx_int8"} else 8


def executes_bf16() -> bool:
    """Return whether the CPU multiplies bf16 itself."""
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_name() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    if torch is not None:
        return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # no driver, so no GPU that a runtime could use
    return tuple(line.strip() for line in answer.splitlines() if line.strip())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
