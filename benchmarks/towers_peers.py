"""Audio towers of the benchmark `towers`, from log-mel spectrograms to one embedding for each clip."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.towers_steps import Groups, Tower, plain_backends
from benchmarks.towers_workload import Workload, packed_flops, padded_flops
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.pooling import AttentionPooling
from slap_fast.ops import contrastive_loss
from slap_fast.ops.dispatch import CannotServeError
from slap_fast.ops.packed import PackedLayout

Inputs = dict[str, Tensor]

_SCALE = 1 / 0.07  # of cosines, in the contrastive loss
_POSITIONS = 256  # in SigLIP 2's table of position embeddings, which is resized for each clip
CLAP_SECONDS = 10.0
_CLAP_FRAMES = 1001


def slap_fast(workload: Workload) -> Tower:
    """Our tower over packed clips, with attention pooling."""
    audio = workload.model.audio
    encoder = AudioEncoder(workload.model)
    pooling = AttentionPooling(audio.width, audio.pooling_heads, audio.pooling_mlp_ratio)

    def prepare(clips: Sequence[int]) -> tuple[Tensor, PackedLayout]:
        lengths = [workload.tokens[clip] for clip in clips]
        layout = PackedLayout.from_lengths(lengths, device=workload.device)
        return torch.cat([workload.patches(clip) for clip in clips]), layout

    def contrast(embeddings: Tensor, texts: Tensor) -> Tensor:
        unit = F.normalize(embeddings, dim=-1), F.normalize(texts, dim=-1)
        return contrastive_loss(*unit, embeddings.new_tensor(_SCALE)).loss

    return Tower(
        nn.ModuleList([encoder, pooling]),
        audio.width,
        prepare,
        embed=lambda inputs: pooling(encoder(*inputs), inputs[1]),
        flops=lambda groups: packed_flops(workload),
        contrast=contrast,
        plain=plain_backends(),
    )


def naflex(workload: Workload) -> Tower:
    """timm's `NaFlexVit` with the settings of `NaFlexAudioEncoder`, the tower of open_clip's NaFlexCLAP.

    Raises:
        CannotServeError: timm is not installed, or its torchvision is for another PyTorch.
    """
    try:
        timm = importlib.import_module("timm.models.naflexvit")
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError if its operators are missing
        raise CannotServeError(f"timm cannot be imported: {error}") from error
    audio = workload.model.audio
    config = timm.NaFlexVitCfg(
        patch_size=(audio.patch_mels, audio.patch_frames),
        embed_dim=audio.width,
        depth=audio.layers,
        num_heads=audio.heads,
        mlp_ratio=audio.mlp_width / audio.width,
        embed_proj_type="linear",
        pos_embed="none",
        rope_type="axial",
        global_pool="map",
    )
    model = timm.NaFlexVit(config, in_chans=1, num_classes=0)

    def prepare(clips: Sequence[int]) -> Inputs:
        patches, valid, token = _padded(workload, clips)
        rows = workload.model.tokens_per_column
        coordinates = torch.stack([token % rows, token // rows], dim=-1).expand(len(clips), -1, -1)
        coordinates = coordinates * valid[:, :, None]  # zeros at padding, as open_clip fills it
        return {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}

    return _padded_tower(workload, model, prepare, model)


def siglip(workload: Workload) -> Tower:
    """transformers' vision tower of SigLIP 2, a ViT that takes any number of patches with a mask."""
    import transformers

    audio = workload.model.audio
    config = transformers.Siglip2VisionConfig(
        hidden_size=audio.width,
        intermediate_size=audio.mlp_width,
        num_hidden_layers=audio.layers,
        num_attention_heads=audio.heads,
        num_channels=1,
        patch_size=audio.patch_frames,
        num_patches=_POSITIONS,
    )
    model = transformers.Siglip2VisionModel(config)

    def prepare(clips: Sequence[int]) -> Inputs:
        patches, valid, _ = _padded(workload, clips)
        rows = workload.model.tokens_per_column
        shapes = torch.tensor([[workload.tokens[clip] // rows, rows] for clip in clips], device=workload.device)
        return {"pixel_values": patches, "pixel_attention_mask": valid.int(), "spatial_shapes": shapes}

    return _padded_tower(workload, model, prepare, lambda inputs: model(**inputs).pooler_output)


def clap(workload: Workload, *, quick: bool) -> Tower:
    """transformers' CLAP audio tower, an HTSAT of 28 M parameters with the settings of `laion/clap-htsat-unfused`.

    It takes 10 s. Its feature extractor cuts longer clips, at random (here after the first 10 s), and repeats shorter
    ones as often as they fit in, with zeros after them.
    """
    import transformers

    config = transformers.ClapAudioConfig()
    if quick:
        config = transformers.ClapAudioConfig(
            patch_size=16,
            patch_stride=[16, 16],
            patch_embeds_hidden_size=16,
            depths=[1, 1],
            num_attention_heads=[2, 2],
            hidden_size=32,
        )
    model = transformers.ClapAudioModelWithProjection(config)
    model.eval()  # also to train: batch norm and dropout would make results depend on the batch and the random state

    def prepare(clips: Sequence[int]) -> Tensor:
        mels = []
        for clip in clips:
            mel = workload.spectrogram(clip)[:_CLAP_FRAMES]
            mel = mel.repeat(_CLAP_FRAMES // len(mel), 1)
            missing = _CLAP_FRAMES - len(mel)
            mels.append(F.pad(mel, (0, 0, 0, missing), value=workload.model.mel.normalized_floor))
        return torch.stack(mels)[:, None]  # [N, 1, frames, mels]

    def flops(groups: Groups) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_features=prepare([0]))
        return float(counter.get_total_flops() * sum(map(len, groups)))

    return Tower(
        model,
        model.config.projection_dim,
        prepare,
        embed=lambda inputs: model(input_features=inputs).audio_embeds,
        flops=flops,
        contrast=_contrast,
        seconds=partial(min, CLAP_SECONDS),
    )


def _padded_tower(
    workload: Workload,
    model: nn.Module,
    prepare: Callable[[Sequence[int]], Inputs],
    embed: Callable[[Inputs], Tensor],
) -> Tower:
    return Tower(
        model,
        workload.model.audio.width,
        prepare,
        embed,
        flops=partial(padded_flops, workload),
        contrast=_contrast,
    )


def _padded(workload: Workload, clips: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """`[N, L, 256]` patches with zeros after each clip, `[N, L]` bool where they are not, and `[L]` positions."""
    patches = pad_sequence([workload.patches(clip) for clip in clips], batch_first=True)
    token = torch.arange(patches.shape[1], device=workload.device)
    lengths = torch.tensor([workload.tokens[clip] for clip in clips], device=workload.device)
    return patches, token < lengths[:, None], token


def _contrast(embeddings: Tensor, texts: Tensor) -> Tensor:
    """InfoNCE in both directions as open_clip's `ClipLoss` computes it, from cross-entropies of all logits."""
    logits = _SCALE * F.normalize(embeddings, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
