"""Embeds audio files of any duration with plain PyTorch, and ranks them by similarity to a text.

A `Dataset` reads the files, a `DataLoader` groups them without cropping or padding, and `SLAP.encode_audio` packs each
group.

    python examples/embed_with_pytorch.py demo/run/model "a dog barks" recordings/*.wav
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slap_fast import SLAP


class AudioFiles(Dataset):
    """`(samples [S, channels], sampling rate)` of each file."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        samples, rate = soundfile.read(self.paths[index], dtype="float32", always_2d=True)
        return torch.from_numpy(samples), rate


def embed(model: SLAP, paths: Sequence[str], *, batch_size: int = 8) -> Tensor:
    """`[N, D]` embeddings of unit length."""
    batches = DataLoader(AudioFiles(paths), batch_size, collate_fn=list)
    return torch.cat([model.encode_audio(clips) for clips in batches])


def rank(folder: str, text: str, paths: Sequence[str]) -> list[tuple[float, str]]:
    """Similarity and path of each file, the most similar first."""
    model = SLAP.from_pretrained(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    similarities = embed(model, paths) @ model.encode_text(text)[0]
    order = similarities.argsort(descending=True).tolist()
    return [(float(similarities[index]), paths[index]) for index in order]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model, such as demo/run/model")
    parser.add_argument("text")
    parser.add_argument("audio", nargs="+")
    options = parser.parse_args()
    for similarity, path in rank(options.model, options.text, options.audio):
        print(f"{similarity:6.3f}  {path}")
