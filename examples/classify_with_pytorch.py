"""Fine-tunes a classifier on a saved model in plain PyTorch: first its head alone, then the audio tower too (LP-FT).

The folder has one subfolder of audio files for each class. Clips have any duration: they are packed, not padded.

    python examples/classify_with_pytorch.py demo/run/model recordings/ classifier/
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from slap_fast import SLAP


class Classifier(nn.Module):
    """A linear head on the pooled features of the audio tower."""

    def __init__(self, slap: SLAP, classes: int) -> None:
        super().__init__()
        self.slap = slap
        self.head = nn.Linear(slap.embedding_dim, classes, device=slap.device)

    def forward(self, clips: list[str]) -> Tensor:
        """`[N, classes]` logits of audio files."""
        features, tokens = self.slap.audio_features(clips)
        return self.head(self.slap.audio_pooling(features, tokens))


def train(
    model: str, folder: Path, out: Path, *, head_epochs: int = 10, tower_epochs: int = 10, batch_size: int = 16
) -> list[float]:
    """The accuracy on the training clips in each epoch; the model and `head.safetensors` are written to `out`."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    clips = [(str(path), label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = Classifier(SLAP.from_pretrained(model, device=device).train(), len(classes))
    tower = (classifier.slap.audio_encoder, classifier.slap.audio_pooling)
    classifier.slap.requires_grad_(False)  # a frozen tower keeps no activations
    accuracies = []
    for epochs, tower_rate in ((head_epochs, 0.0), (tower_epochs, 1e-4)):
        groups = [{"params": list(classifier.head.parameters()), "lr": 1e-2}]
        if tower_rate:
            groups += [{"params": list(part.requires_grad_(True).parameters()), "lr": tower_rate} for part in tower]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        for _ in range(epochs):
            random.shuffle(clips)
            correct = 0
            for start in range(0, len(clips), batch_size):
                paths, labels = zip(*clips[start : start + batch_size], strict=True)
                target = torch.tensor(labels, device=device)
                logits = classifier(list(paths))
                optimizer.zero_grad()
                F.cross_entropy(logits, target).backward()
                optimizer.step()
                correct += int((logits.argmax(-1) == target).sum())
            accuracies.append(correct / len(clips))
            print(f"epoch {len(accuracies)}: training accuracy {accuracies[-1]:.3f}")
    classifier.slap.save_pretrained(out)
    save_model(classifier.head, str(out / "head.safetensors"))
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model, such as demo/run/model")
    parser.add_argument("folder", type=Path, help="one subfolder of audio files for each class")
    parser.add_argument("out", type=Path, help="folder of the trained model")
    options = parser.parse_args()
    train(options.model, options.folder, options.out)
