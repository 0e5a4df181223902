"""METEOR and SPICE: the Java programs of the pycocoevalcap package."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from slap_fast.errors import SlapFastError, one_line
from slap_fast.evaluation.caption_metrics.ngrams import Tokens

_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class UnavailableError(SlapFastError):
    """A metric that cannot be computed on this machine; the message says why and what to do."""


def java_command() -> str | None:
    """The path of `java`; None if it is not installed."""
    return shutil.which("java")


def meteor(generated: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of the clips together, which is not the mean, and of each (Denkowski and Lavie, WMT 2014).

    Raises:
        UnavailableError: no Java, no pycocoevalcap, or the program fails.
    """
    # Not by the class of pycocoevalcap, which waits forever after an error of the program.
    folder = _require_java() / "meteor"
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
            )
        except OSError as error:
            raise UnavailableError(f"METEOR's Java program cannot be started: {one_line(error)}") from error
        try:
            counts = []
            for tokens, several in zip(generated, references, strict=True):
                texts = [*(" ".join(reference) for reference in several), " ".join(tokens)]
                counts.append(_answer(process, " ||| ".join(["SCORE", *texts])))
            first = float(_answer(process, " ||| ".join(["EVAL", *counts])))
            values = [first, *(float(_answer(process)) for _ in counts)]
        except (OSError, ValueError) as error:
            process.kill()
            process.wait()
            errors.seek(0)
            said = errors.read().strip()[-300:] or one_line(error)
            raise UnavailableError(f"METEOR's Java program, which needs 2 GB of memory, failed: {said}") from error
        finally:
            process.kill()
            with suppress(OSError):  # what it has not read
                process.communicate()
    return values[-1], values[:-1]


def spice(generated: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """SPICE of each clip: the F-score of the propositions in its scene graph (Anderson et al., ECCV 2016).

    Raises:
        UnavailableError: no Java, no pycocoevalcap, no parser, or the program fails.
    """
    folder = _require_java() / "spice"
    missing = [name for name in _SPICE_MODELS if not (folder / "lib" / name).is_file()]
    if missing:
        raise UnavailableError(
            f"it needs {missing[0]} in {folder / 'lib'}: run python -m pycocoevalcap.spice.get_stanford_models"
        )
    clips = [
        {"image_id": clip, "test": " ".join(tokens), "refs": [" ".join(reference) for reference in several]}
        for clip, (tokens, several) in enumerate(zip(generated, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        given, result = Path(temporary) / "captions.json", Path(temporary) / "scores.json"
        given.write_text(json.dumps(clips), encoding="utf-8")
        command = ["java", "-Xmx8G", "-jar", "spice-1.0.jar", str(given), "-out", str(result), "-subset", "-silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            scores = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in json.loads(result.read_text())}
            return [scores[clip] for clip in range(len(clips))]
        except subprocess.CalledProcessError as error:
            raise UnavailableError(f"SPICE's Java program failed: {error.stderr.strip()[-300:]}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"the result of SPICE's Java program cannot be read: {one_line(error)}") from error


def _answer(process: subprocess.Popen[str], question: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    answer = process.stdout.readline().strip()
    if not answer:
        raise ValueError("it ended without an answer")
    return answer


def _require_java() -> Path:
    """The folder of pycocoevalcap."""
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise UnavailableError("it needs pycocoevalcap: pip install 'slap-fast[eval]'")
    if java_command() is None:
        raise UnavailableError("it needs Java, and there is no `java` command here; install a Java runtime")
    return Path(package.submodule_search_locations[0])
