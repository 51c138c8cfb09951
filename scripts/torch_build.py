"""Which build of torch this machine wants, and where it can be had.

Standard library only, part of the set-up (`install.py`); it installs nothing and knows nothing of environments.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PYTORCH_INDEX = "https://download.pytorch.org/whl"  # PyTorch's own public wheel index
PROBE_SECONDS = 6.0
BUILDS = ("cpu", "cuda", "rocm", "apple")
# The build on the ordinary package index is made for CUDA 13; older drivers need another one.
ORDINARY_CUDA = (13, 0)


class SetupError(Exception):
    """The environment cannot be made; the text says what to do."""


@dataclass(frozen=True)
class Machine:
    """Which torch build the machine wants, and what that was concluded from.

    Attributes:
        build: One of `BUILDS`.
        reason: What was seen, for the user.
        cuda: Newest CUDA version (major, minor) the NVIDIA driver supports; None if not known.
    """

    build: str
    reason: str
    cuda: tuple[int, int] | None = None


@dataclass(frozen=True)
class TorchSource:
    """Where torch comes from.

    Attributes:
        note: One sentence for the user.
        requirement: Exact requirement beside the project's own; empty when the constraints say enough.
        label: Folder of PyTorch's wheel index ("cpu", "cu128") to take it from; empty for the ordinary sources.
    """

    note: str
    requirement: str = ""
    label: str = ""


# --- which machine ---------------------------------------------------------------------------------


def find_machine() -> Machine:
    """Find out which torch build fits: SIMPLETUNER_TORCH decides, else what the machine shows.

    Raises:
        SetupError: If SIMPLETUNER_TORCH is no known build, or torch is not published for the machine.
    """
    if sys.platform == "darwin" and platform.machine() != "arm64":
        raise SetupError(
            "this is an Intel Mac, or a Python made for one; PyTorch publishes only for Apple Silicon. "
            "On an Apple Silicon Mac, install a Python for arm64"
        )
    wanted = os.environ.get("SIMPLETUNER_TORCH", "")
    if wanted and wanted not in BUILDS:
        raise SetupError(f"SIMPLETUNER_TORCH is '{wanted}'; it must be one of {', '.join(BUILDS)}")
    found = find_apple() or find_nvidia() or find_rocm() or Machine("cpu", "no NVIDIA, AMD or Apple GPU found")
    if wanted and wanted != found.build:
        return Machine(wanted, f"SIMPLETUNER_TORCH={wanted}, though by itself this machine would get {found.build}")
    return found


def find_apple() -> Machine | None:
    """An Apple Silicon machine, if it is one."""
    return Machine("apple", "Apple Silicon") if sys.platform == "darwin" else None


def find_nvidia() -> Machine | None:
    """An NVIDIA GPU with a working driver, if there is one."""
    cuda = re.search(r"CUDA[^|\d]*Version:\s*(\d+)\.(\d+)", output_of(["nvidia-smi"]))
    if cuda:
        names = re.findall(r"^GPU \d+: (.+?) \(UUID", output_of(["nvidia-smi", "-L"]), re.MULTILINE)
        version = (int(cuda[1]), int(cuda[2]))
        return Machine("cuda", f"{names[0] if names else 'NVIDIA GPU'}, driver for CUDA {cuda[1]}.{cuda[2]}", version)
    # A container may see the driver without having its tool.
    if Path("/proc/driver/nvidia/version").exists():
        return Machine("cuda", "NVIDIA driver loaded")
    return None


def find_rocm() -> Machine | None:
    """An AMD GPU with ROCm, if there is one: the kernel's device must be there, not only the tools."""
    if not Path("/dev/kfd").exists():
        return None
    gpu = re.search(r"gfx[0-9a-f]{3,}", output_of(["rocminfo"]))
    if gpu:
        return Machine("rocm", f"ROCm, AMD {gpu[0]}")
    return Machine("rocm", "ROCm in /opt/rocm") if Path("/opt/rocm").is_dir() else None


# --- where torch comes from ------------------------------------------------------------------------


def choose_torch(machine: Machine, pin: str, offered: frozenset[str]) -> TorchSource:
    """Choose the source of torch `pin` for `machine`.

    On Linux the ordinary package index gives a build with gigabytes of CUDA libraries; a machine
    without a GPU is spared them wherever a CPU build can be had.

    Args:
        machine: What was found.
        pin: Version in `constraints.txt`, such as "2.13.0".
        offered: Versions of torch that pip's configured sources offer, with local parts ("2.13.0+cpu").
    Raises:
        SetupError: If the machine wants ROCm and no such build can be had.
    """
    if machine.build == "apple" or (machine.build == "cpu" and sys.platform != "linux"):
        return TorchSource("The ordinary torch build is the right one here.")
    if machine.build == "cpu":
        return choose_cpu_torch(pin, offered)
    if machine.build == "cuda":
        return choose_cuda_torch(machine, pin, offered)
    label = best_label(listed_labels("", pin), "rocm")
    if not label:
        raise SetupError(
            f"no ROCm build of torch {pin} was found: PyTorch's wheel index cannot be reached or lists none for "
            f"this Python. Allow access to {PYTORCH_INDEX}, or choose SIMPLETUNER_TORCH=cpu"
        )
    return from_index(pin, label)


def choose_cpu_torch(pin: str, offered: frozenset[str]) -> TorchSource:
    """The smallest torch for a Linux machine without a GPU."""
    if f"{pin}+cpu" in offered:
        return TorchSource("Your configured package sources offer the CPU build.", f"torch=={pin}+cpu")
    if "cpu" in listed_labels("cpu/", pin):
        return from_index(pin, "cpu")
    return TorchSource(
        "PyTorch's wheel index offers no CPU build here or cannot be reached, so the ordinary build is installed: "
        "it works on the CPU, but brings CUDA libraries of several GB."
    )


def choose_cuda_torch(machine: Machine, pin: str, offered: frozenset[str]) -> TorchSource:
    """The ordinary build where the driver runs it, else the newest one that the driver does run."""
    # A local part sorts above none, so a CPU build in the configured sources would win unasked.
    not_cpu = f"torch!={pin}+cpu" if f"{pin}+cpu" in offered else ""
    if sys.platform == "linux" and (machine.cuda is None or machine.cuda >= ORDINARY_CUDA):
        return TorchSource("The ordinary torch build brings its own CUDA libraries (several GB).", not_cpu)
    label = best_label(listed_labels("", pin), "cu", machine.cuda)
    if label:
        return from_index(pin, label)
    return TorchSource(
        "PyTorch's wheel index cannot be reached or lists no build for this driver; the ordinary build is installed "
        "and may not see the GPU. If so, update the NVIDIA driver.",
        not_cpu,
    )


def from_index(pin: str, label: str) -> TorchSource:
    """Torch `pin` from the folder `label` of PyTorch's wheel index."""
    return TorchSource(f"Build {label} comes from PyTorch's wheel index.", f"torch=={pin}+{label}", label)


def listed_labels(folder: str, pin: str) -> frozenset[str]:
    """Local parts ("cpu", "cu128", "rocm7.1") of torch `pin` on PyTorch's index for this Python and machine.

    Args:
        folder: "cpu/" for the CPU builds, empty for all of them.
        pin: Version without its local part.
    Returns:
        The labels; empty when the index does not answer within a few seconds.
    """
    try:
        with urllib.request.urlopen(f"{PYTORCH_INDEX}/{folder}torch/", timeout=PROBE_SECONDS) as answer:
            page = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return frozenset()
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    system = {"linux": "linux", "win32": "win", "darwin": "macosx"}.get(sys.platform, sys.platform)
    wheel = re.compile(rf"torch-{re.escape(pin)}(?:%2B|\+)([\w.]+)-{tag}-{tag}-([\w.]+)\.whl", re.IGNORECASE)
    machine = platform.machine().lower()
    return frozenset(
        label for label, place in wheel.findall(page) if system in place.lower() and place.lower().endswith(machine)
    )


def best_label(labels: frozenset[str], kind: str, limit: tuple[int, int] | None = None) -> str:
    """The newest of the `labels` of this `kind` ("cu" or "rocm"), not above `limit`; empty if none."""
    pattern = r"rocm(\d+)\.(\d+)(?:\.\d+)?" if kind == "rocm" else r"cu(\d+)(\d)"
    versions: dict[tuple[int, int], str] = {}
    for label in sorted(labels):
        found = re.fullmatch(pattern, label)
        if found and (limit is None or (int(found[1]), int(found[2])) <= limit):
            versions[int(found[1]), int(found[2])] = label
    return versions[max(versions)] if versions else ""


def offered_versions(pin: str) -> frozenset[str]:
    """Torch `pin` and its variants ("2.13.0+cpu") as far as pip's configured sources offer them.

    Empty when this Python has no pip, when pip is too old to tell, or when no source answers.
    """
    told = output_of([sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check"], 60)
    return frozenset(re.findall(rf"(?<![\w.+]){re.escape(pin)}(?:\+[\w.]+)?(?![\w.+])", told))


def output_of(command: list[str], seconds: float = 15) -> str:
    """What `command` prints; empty when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
