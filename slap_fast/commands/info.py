"""`slap-fast info` and `python -m slap_fast`: versions, devices, and the backends of each op."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import platform
import warnings

from slap_fast import __version__

HELP = "show versions, devices and the backends that serve here"

# Distribution name -> the extra of slap-fast that installs it; "" for dependencies.
PACKAGES = {
    "torch": "",
    "numpy": "",
    "transformers": "",
    "tokenizers": "",
    "safetensors": "",
    "huggingface_hub": "",
    "soundfile": "",
    "soxr": "",
    "deepspeed": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "pyarrow": "train",
    "av": "media",
    "scikit-learn": "eval",
    "mteb": "eval",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "trackio": "trackers",
    "wandb": "trackers",
    "nvidia-dali-cuda130": "dali",
    "triton": "gpu",
    "flash-attn": "gpu",
    "xformers": "gpu",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace) -> int:
    del arguments
    print(report())
    return 0


def versions() -> dict[str, str]:
    """Version of each package, or how to install it, without importing them."""
    from importlib import metadata  # takes longer to load than the rest of `slap-fast --help`

    found = {"slap-fast": __version__, "python": platform.python_version()}
    for name, extra in PACKAGES.items():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing = f'pip install "slap-fast[{extra}]"' if extra else "reinstall slap-fast"
            found[name] = f"not installed ({missing})"
    return found


def devices() -> dict[str, str]:
    """The devices that torch finds."""
    try:
        import torch
    except Exception as error:  # the page must help when torch does not load
        return {"torch": f"does not load: {error}"}
    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        found["cuda"] = f"none (torch is built for {built_for})"
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    return found


def native_module() -> dict[str, str]:
    """Instruction sets of the native module: compiled, supported by this machine, and in use."""
    from slap_fast import native

    try:
        reason = native.unavailable()
        module = None if reason else native.load()
    except ValueError as error:
        reason, module = str(error), None
    if module is None:
        return {"slap_fast._C": f"no: {reason}"}
    return {
        "compiled": ", ".join(module.compiled_isas()),
        "machine": module.detected_isa(),
        "in use": module.chosen_isa(),
    }


def backends() -> dict[str, str]:
    """The backends of each op in order of preference, each with the reason if it does not serve here."""
    from slap_fast.ops import dispatch

    found = {}
    for module in pkgutil.iter_modules(importlib.import_module("slap_fast.ops").__path__, "slap_fast.ops."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            found[module.name] = f"does not load: {error}"
    for op, served in dispatch.report().items():
        found[op] = "; ".join(name if reason is None else f"{name} (no: {reason})" for name, reason in served)
    return found


def report() -> str:
    """The page as text."""
    sections = {
        "versions": versions,
        "devices": devices,
        "native module": native_module,
        "backends, in order of preference": backends,
    }
    lines = []
    for title, collect in sections.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the page itself shows what is missing
                rows = collect()
        except Exception as error:
            rows = {"failed": f"{type(error).__name__}: {error}"}
        width = max(map(len, rows), default=0)
        lines += [title, *(f"  {name:<{width}}  {value}" for name, value in rows.items()), ""]
    return "\n".join(lines).rstrip()
