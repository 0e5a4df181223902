"""Description of the machine and the software versions, recorded in each result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from slap_fast import native

LIBRARIES = (
    "torch",
    "slap-fast",
    "transformers",
    "numpy",
    "triton",
    "flash-attn",
    "xformers",
    "torchaudio",
    "deepspeed",
)
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve", "bf16")


def describe_machine(device: str) -> dict[str, Any]:
    cpu_info = _read("/proc/cpuinfo")
    machine: dict[str, Any] = {
        "cpu": _cpu_name(cpu_info),
        "cores": len(os.sched_getaffinity(0)),
        "isa": cpu_isa(),
        "native_isa": native.isa() or "without native code",
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average": os.getloadavg()[0],  # shows whether other processes were running at the start
        "system": platform.platform(),
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return machine


def _cpu_name(cpu_info: str) -> str:
    """Name, family and model: virtual machines often hide the product name, but seldom family and model."""
    fields = dict(re.findall(r"^(model name|cpu family|model)[ \t]*:[ \t]*(.+)$", cpu_info, re.MULTILINE))
    name = fields.get("model name", platform.processor() or platform.machine()).strip()
    if "cpu family" not in fields or "model" not in fields:
        return name
    return f"{name}, family {fields['cpu family'].strip()}, model {fields['model'].strip()}"


def cpu_isa() -> list[str]:
    """The instruction sets of this CPU that kernels may use."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return [flag for flag in ISA_FLAGS if flag in present]


def has_bf16_units(device: str) -> bool:
    """Whether the device has instructions for bfloat16 matrix products; without them, a time says little."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_isa())


def available_bytes(device: str) -> int:
    """Available memory of the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if available:
        return int(available[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cuda_responds() -> bool:
    """False after a sticky CUDA error, such as an illegal memory access: then every CUDA call of the process fails."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def describe_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    versions["commit"] = _commit()
    return versions


def _commit() -> str | None:
    """Commit of the checkout, with `+changes` if files differ from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # Every run changes the results.
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changed.strip() else head


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
