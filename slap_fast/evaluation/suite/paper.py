"""The evaluations of the SLAP paper (Mei et al., arXiv 2601.12594): datasets, prompts and published numbers.

The paper does not give its prompts; those here are ours, and are printed with the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Published:
    """A number of the paper, in percent (CIDEr and SPICE: times 100).

    Attributes:
        value: of the pretrained model, zero-shot.
        tuned: after further training, or None.
        how: what that training was.
    """

    value: float
    tuned: float | None = None
    how: str = ""


@dataclass(frozen=True)
class Task:
    """One dataset of a suite.

    Attributes:
        name: as `discovery.py` finds it.
        title: for tables.
        kind: `labeled` for zero-shot classification; `captioned` for retrieval and captioning.
        published: by score: `accuracy_at_1`; `t2a_r1`, `a2t_r1`, `cider_d`, `spice`.
        source: where to get it.
        prompts: name of a prompt set.
    """

    name: str
    title: str
    kind: Literal["labeled", "captioned"]
    published: Mapping[str, Published]
    source: str
    prompts: str = "default"
    scores: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", tuple(self.published))


def _accuracy(value: float, tuned: float) -> dict[str, Published]:
    return {"accuracy_at_1": Published(value, tuned, "WavCaps")}


PAPER = (
    Task(
        "esc50",
        "ESC-50",
        "labeled",
        _accuracy(88.6, 95.5),
        "github.com/karolpiczak/ESC-50; unpack it so that meta/esc50.csv and audio/ are in one folder",
    ),
    Task(
        "urbansound8k",
        "UrbanSound8K",
        "labeled",
        _accuracy(81.6, 83.5),
        "urbansounddataset.weebly.com; the folder with metadata/UrbanSound8K.csv and audio/fold1 to fold10",
    ),
    Task(
        "crema_d",
        "CREMA-D",
        "labeled",
        _accuracy(28.1, 32.2),
        "github.com/CheyneyComputerScience/CREMA-D; its folder AudioWAV",
        "emotion",
    ),
    Task(
        "ravdess",
        "RAVDESS",
        "labeled",
        _accuracy(26.4, 29.8),
        "zenodo.org/record/1188976; Audio_Speech_Actors_01-24.zip, unpacked",
        "emotion",
    ),
    Task(
        "gtzan",
        "GTZAN",
        "labeled",
        _accuracy(56.8, 80.5),
        "the genre collection of Tzanetakis and Cook (2002), marsyas/gtzan on the Hugging Face hub; its folder genres",
        "music",
    ),
    Task(
        "audiocaps",
        "AudioCaps",
        "captioned",
        {
            "t2a_r1": Published(35.1, 47.5, "fine-tuned"),
            "a2t_r1": Published(44.8, 63.4, "fine-tuned"),
            "cider_d": Published(75.1),
            "spice": Published(18.1),
        },
        "github.com/cdjkim/audiocaps for test.csv; its audio is from YouTube",
    ),
    Task(
        "clotho",
        "Clotho",
        "captioned",
        {
            "t2a_r1": Published(18.9, 27.2, "fine-tuned"),
            "a2t_r1": Published(23.5, 36.8, "fine-tuned"),
            "cider_d": Published(43.7),
            "spice": Published(13.1),
        },
        "zenodo.org/record/4783391; clotho_captions_evaluation.csv and clotho_audio_evaluation.7z, unpacked",
    ),
)

SUITES: Mapping[str, tuple[Task, ...]] = {"paper": PAPER}

SCORE_TITLES: Mapping[str, str] = {
    "accuracy_at_1": "accuracy",
    "t2a_r1": "text to audio R@1",
    "a2t_r1": "audio to text R@1",
    "cider_d": "CIDEr-D",
    "spice": "SPICE",
}
