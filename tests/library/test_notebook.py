"""Results in Jupyter, and the example notebook."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast.library import notebook
from slap_fast.library.moments import Moment, SearchResults

NOTEBOOK = Path(__file__).parents[2] / "examples" / "search_a_library.ipynb"
EVIL = "<img src=x onerror=alert(1)>\n\x1b[31m'\"&.wav"


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def sources(self, tag: str) -> list[bytes]:
        sources = [attrs["src"] or "" for name, attrs in self.found if name == tag]
        return [base64.b64decode(source.partition("base64,")[2], validate=True) for source in sources]


def _moment(path: bytes | Path, *, start: float = 1.0, end: float = 3.0) -> Moment:
    return Moment(os.fsdecode(path), "", start, end, 0.5, 60.0, 1)


@pytest.fixture
def sound(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path) + b"/\xff" + EVIL.replace("/", "").encode()
    samples = 0.5 * np.sin(np.arange(50 * 16_000) * 0.3)
    with open(path, "wb") as file:
        soundfile.write(file, samples, 16_000, format="WAV")
    return path


def test_a_moment_is_played_and_drawn_and_its_name_is_text(sound: bytes) -> None:
    calls = []

    def curve(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append((len(samples), sampling_rate))
        return np.array([0.5, 1.5]), np.array([0.1, 0.2])

    query = "<script>alert(2)</script>"
    text = SearchResults(query, [_moment(sound)], curve)._repr_html_()
    text.encode()  # a browser takes UTF-8 alone
    tags = _Tags(text)
    assert {tag for tag, _ in tags.found} == {"p", "b", "div", "code", "br", "audio", "img"}
    assert not [name for _, attrs in tags.found for name in attrs if name.startswith("on")]
    (audio,) = tags.sources("audio")
    samples, rate = soundfile.read(io.BytesIO(audio))
    assert (len(samples), rate) == (2 * 16_000, 16_000)
    (picture,) = tags.sources("img")
    assert picture.startswith(b"\x89PNG")
    assert calls == [(32_000, 16_000)]
    assert _moment(sound)._repr_html_().count("<audio") == 1


def test_the_size_of_results_is_bounded(sound: bytes) -> None:
    moments = [_moment(sound, start=0, end=49)] * (notebook.MAX_PLAYED + 5)
    text = SearchResults("noise", moments)._repr_html_()
    tags = _Tags(text)
    assert len(tags.sources("audio")) == notebook.MAX_PLAYED
    assert len(tags.sources("img")) == notebook.MAX_DRAWN
    assert all(soundfile.info(io.BytesIO(audio)).duration == 30 for audio in tags.sources("audio"))
    assert text.count("0:00:00.0 to 0:00:49.0") == len(moments)


def test_a_moment_of_a_file_that_is_gone_or_shorter_now_is_listed_with_the_reason(sound: bytes, tmp_path: Path) -> None:
    gone = _moment(tmp_path / "gone.wav")
    later = replace(_moment(sound), start=55.0, end=60.0)
    text = SearchResults("noise", [gone, later])._repr_html_()
    assert text.count("cannot be played") == 2
    assert "gone.wav" in text
    assert "index it again" in text
    assert "<audio" not in text
    assert "Nothing found" in SearchResults("noise", [])._repr_html_()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        samples = random.uniform(-0.5, 0.5, 16_000 + 4000 * (number % 2))
        soundfile.write(folder / f"noise {number}.wav", samples, 16_000)
    (folder / "copy.wav").write_bytes((folder / "noise 0.wav").read_bytes())
    return folder


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What runs the cells in a kernel, in this process, which has imported everything."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}), user_module=ModuleType("cells"))
    try:
        yield shell
    finally:
        shell.restore_sys_module_state()


def test_the_example_notebook_runs(
    shell: Any, empty_library: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from IPython.utils.capture import capture_output

    shutil.copytree(empty_library, tmp_path / "sounds")
    monkeypatch.setenv("MODEL", str(empty_library.parent / "model"))
    monkeypatch.setenv("RECORDINGS", str(recordings))
    monkeypatch.setenv("LIBRARY", str(tmp_path / "sounds"))
    monkeypatch.chdir(tmp_path)
    content = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count], "commit it without its outputs"
    printed, shown = [], []
    for cell in code:
        with capture_output() as captured:
            done = shell.run_cell(cell.source)
        done.raise_error()
        printed.append(captured.stdout)
        if done.result is not None:
            shown.append(shell.display_formatter.format(done.result)[0])
    assert printed[1] == "7 recordings, 7 windows, embeddings (7, 32)\n"
    assert shown[0]["text/html"].count("<audio") == 3
    assert shown[0]["text/html"].count("<img") == 3
    assert re.search(r"copy\.wav\n.*noise 0\.wav|noise 0\.wav\n.*copy\.wav", printed[4])
    assert shown[1]["image/png"]
    assert (tmp_path / "map.png").is_file()
