"""Where figures come from: the machine, the versions, the code, the command. A figure without them says nothing."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from workflows.rates.commands import ROOT

PACKAGES = ("torch", "torchvision", "timm", "ray", "numpy", "openslide-python", "openslide-bin", "onnxruntime")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")  # of the CPU, that its speed depends on


def describe_machine(device: str) -> dict[str, Any]:
    """JSON-ready; the load is that before the benchmark."""
    return {
        "device": describe_device(device),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "flags": [flag for flag in FLAGS if flag in _of_cpu("flags").split()],
        "load": [round(each, 2) for each in os.getloadavg()],
        "system": platform.platform(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_versions() -> dict[str, str]:
    return {"python": platform.python_version(), "commit": _commit()} | {name: _version(name) for name in PACKAGES}


def command_line() -> str:
    return shlex.join(["python", *sys.argv])


def describe_device(device: str) -> str:
    """The name of the CPU or GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return _of_cpu("model name") or "CPU"


def _of_cpu(field: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Of this checkout, with a + where files differ from it; empty where the project is installed without one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except OSError:  # no git here
        return ""
