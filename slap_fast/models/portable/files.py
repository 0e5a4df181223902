"""Files of exported towers: ONNX for other runtimes, or `torch.export`, each checked against the model."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from slap_fast._version import __version__
from slap_fast.config.saved_files import save_tokenizer
from slap_fast.errors import MissingExtraError, ModelError
from slap_fast.models.encoding import embed_token_ids, encode_features, tokenizer_of
from slap_fast.models.portable.audio_tower import PortableAudioTower
from slap_fast.models.portable.text_tower import PortableTextTower
from slap_fast.models.quantization import require_float
from slap_fast.models.slap import SLAP
from slap_fast.runtime.durable_files import complete_or_absent
from slap_fast.runtime.onnx_runtime import import_onnxruntime

Format = Literal["onnx", "torch"]

OPSET = 18
TOLERANCE = 1e-4
"""Largest deviation of an embedding of unit length from the model's."""
_SUFFIXES = {"onnx": "onnx", "torch": "pt2"}
# Above it, weights are beside the ONNX file: a protocol buffer holds at most 2 GB.
_LARGEST_FILE = 1_500_000_000

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class ExportedTower:
    """One exported tower.

    Attributes:
        files: names, and sizes in bytes.
        deviation: largest absolute difference from the model over the inputs that were tried.
    """

    files: dict[str, int]
    deviation: float


def export_towers(
    model: SLAP, folder: Path, kind: Format, *, audio: bool = True, largest_file: int | None = None
) -> list[ExportedTower]:
    """Write the towers of a model, its tokenizer and `export.json` into a new folder, after a check of their outputs.

    The inputs are `waveform` `[1, S]` float32 at the model's rate, for any S with a frame, and `input_ids` and
    `attention_mask` `[N, L]` int64. The outputs are embeddings of unit length. A model without the contrastive
    objective has no text tower, and its audio output is `[T, width]` features.

    Args:
        model: float32, on the CPU, in eval mode.
        folder: must not exist; appears complete or not at all.
        audio: False exports the text tower alone.
        largest_file: bytes of weights above which they are in a file beside the ONNX file, from where onnxruntime maps
            them into memory; None: only where one file cannot hold them.

    Raises:
        MissingExtraError: a package for ONNX is not installed.
        ModelError: the model has no tokenizer or has int8 weights, cannot be exported, or an output deviates by more
            than `TOLERANCE`.
        OSError: a file cannot be written.
    """
    require_float(model, "be exported")
    if kind == "onnx":
        _require_onnx()
    has_text = model.text_encoder is not None
    tokenizer = tokenizer_of(model) if has_text else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(folder) as partial, _frozen(model), _quiet(), torch.no_grad():
        limit = _LARGEST_FILE if largest_file is None else largest_file
        towers = []
        if audio:
            dims: Any = ({1: _samples(model)},)
            towers.append(_export(PortableAudioTower(model), _audio_inputs(model), dims, partial, "audio", kind, limit))
        if has_text:
            dim = {0: Dim("texts", min=1), 1: Dim("tokens", min=1, max=model.config.text.max_length)}
            cases = _text_inputs(model)
            towers.append(_export(PortableTextTower(model), cases, (dim, dim), partial, "text", kind, limit))
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial / "tokenizer")
        description = json.dumps(_description(model, towers, kind), indent=2)
        (partial / "export.json").write_text(description + "\n", encoding="utf-8")
    return towers


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f'export to ONNX needs {name}: pip install "slap-fast[onnx]"')


Case = tuple[tuple[Tensor, ...], Tensor]
"""Inputs of a tower, and the model's output."""


def _export(
    tower: nn.Module, cases: list[Case], dims: Any, folder: Path, name: str, kind: Format, limit: int
) -> ExportedTower:
    """Write one tower and compare it with the expected outputs; the first case is the example that is traced."""
    path = folder / f"{name}.{_SUFFIXES[kind]}"
    inputs = ["waveform"] if name == "audio" else ["input_ids", "attention_mask"]
    output = f"{name}_embeds" if cases[0][1].shape[0] == cases[0][0][0].shape[0] else f"{name}_features"
    try:
        program = torch.export.export(tower.eval(), cases[0][0], dynamic_shapes=dims)
        run = _write_onnx(program, path, inputs, output, limit) if kind == "onnx" else _write_torch(program, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # The exporters raise errors of many types.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} tower: cannot be exported as {kind}: {type(error).__name__}: {reason}") from error
    deviations = [float((run(*given) - expected).abs().max()) for given, expected in cases]
    deviation = max(deviations)
    if not deviation <= TOLERANCE:  # NaN too
        shape = list(cases[deviations.index(deviation)][0][0].shape) if deviation == deviation else "one input"
        raise ModelError(
            f"{name} tower: the exported {kind} program deviates by {deviation:.2g} from the model for {shape} inputs, "
            f"above the tolerance of {TOLERANCE:g}; it was not kept"
        )
    return ExportedTower({file.name: file.stat().st_size for file in sorted(folder.glob(f"{name}.*"))}, deviation)


def _write_onnx(program: ExportedProgram, path: Path, inputs: list[str], output: str, limit: int) -> Run:
    onnxruntime = import_onnxruntime()
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    converted = torch.onnx.export(
        program, input_names=inputs, output_names=[output], opset_version=OPSET, dynamo=True, verbose=False
    )
    if converted is None:
        raise RuntimeError("torch.onnx.export returned no program")
    converted.save(os.fspath(path), external_data=size > limit)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(inputs, given, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


def _write_torch(program: ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _shortest(model: SLAP) -> int:
    """Samples of the shortest clip that has a frame: 1, or more with `MelConfig.drop_last_frame`."""
    return next(length for length in count(1) if model.config.num_tokens(length))


def _samples(model: SLAP) -> Dim:
    """Number of samples of a clip: as a sum with the shortest, so that torch.export can prove that there are tokens."""
    shortest = _shortest(model)
    return Dim("samples", min=1) if shortest == 1 else Dim("more", min=0) + shortest


def _audio_inputs(model: SLAP) -> list[Case]:
    """Noise of many lengths, and silence."""
    mel = model.config.mel
    generator = torch.Generator().manual_seed(0)
    # Reflected, one or two samples are constant or periodic: most bands hold rounding errors alone, which no two
    # implementations share.
    shortest = _shortest(model) if mel.padding in ("none", "zeros") else max(_shortest(model), mel.hop_length // 2)
    lengths = [
        3 * mel.sample_rate,
        shortest,
        shortest + 1,
        mel.win_length + 1,
        mel.sample_rate - 1,
        10 * mel.sample_rate + 1,
    ]
    clips = [torch.rand(length, generator=generator) - 0.5 for length in lengths]
    clips.append(torch.zeros(mel.sample_rate))
    if model.audio_pooling is None:
        return [((clip[None],), encode_features(model, [clip])[0]) for clip in clips]
    return [((clip[None],), model.encode_audio([clip], sampling_rate=mel.sample_rate, long="whole")) for clip in clips]


def _text_inputs(model: SLAP) -> list[Case]:
    """Texts of many lengths, padded together and alone."""
    tokenizer, max_length = tokenizer_of(model), model.config.text.max_length
    cases: list[Case] = []
    for texts in (["a dog barks", "rain falls on the roof", "wind"], ["a"], [""], ["rain " * max_length, "a bell"]):
        ids = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        rows = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        cases.append(((ids["input_ids"], ids["attention_mask"]), embed_token_ids(model, rows)))
    return cases


def _description(model: SLAP, towers: list[ExportedTower], kind: Format) -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ("torch",)
    described: dict[str, Any] = {
        "format": kind,
        **({"opset": OPSET} if kind == "onnx" else {}),
        "versions": {"slap-fast": __version__, **{name: version(name) for name in packages}},
        "objectives": list(model.objectives),
        "sample_rate": model.config.mel.sample_rate,
        "files": {name: size for tower in towers for name, size in tower.files.items()},
        "largest_deviation": max(tower.deviation for tower in towers),
    }
    if model.text_encoder is not None:
        described |= {"max_length": model.config.text.max_length, "logit_scale": model.logit_scale().item()}
    return described


@contextmanager
def _frozen(model: SLAP) -> Iterator[None]:
    """Parameters that require gradients would be exported as operations that detach them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own messages, such as one for each operator of torchvision, which is not used."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
