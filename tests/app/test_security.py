"""What the page refuses, deletes and escapes: by requests that the page itself would never make."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import soundfile

from slap_fast.app.listener import Listener
from slap_fast.errors import ModelError
from slap_fast.library.database import Database
from slap_fast.library.library import Library
from tests.app.served import RATE, UNDECODABLE, Served, make_library, served
from tests.models.saved import tiny_slap

pytest.importorskip("gradio", reason="the page needs Gradio")


def ask(
    page: Served,
    path: str,
    *,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, str, Any]:
    request = urllib.request.Request(page.address + path.lstrip("/"), data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), error.headers


def upload(page: Served, name: str, content: bytes, *, origin: str | None = None) -> tuple[int, str, Any]:
    body = (
        (
            f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        + content
        + b"\r\n--cut--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=cut"} | ({"Origin": origin} if origin else {})
    return ask(page, "gradio_api/upload", data=body, headers=headers)


def call(page: Served, function: int, values: list[Any], **more: Any) -> str:
    """What an event of the page answers to a client that sends any values."""
    session = f"s{os.urandom(4).hex()}"
    body = {"data": values, "fn_index": function, "session_hash": session, "trigger_id": None, **more}
    status, answer, _ = ask(
        page, "gradio_api/queue/join", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    return answer if status != 200 else ask(page, f"gradio_api/queue/data?session_hash={session}")[1]


def function_of(page: Served, target: str, event: str) -> int:
    config = json.loads(ask(page, "config")[1])
    names = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    (found,) = [
        dependency["id"]
        for dependency in config["dependencies"]
        if any(names.get(number) == target and kind == event for number, kind in dependency["targets"])
    ]
    return found


def test_it_listens_on_this_machine_alone(page: Served) -> None:
    port = urlsplit(page.address).port
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [address for address in listening if int(address.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file={folder}/secret.txt",
        "gradio_api/file={folder}/sounds/long.wav",
        "gradio_api/file={uploads}/../../secret.txt",
        "gradio_api/file={uploads}/link",
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=//etc/passwd",
        "gradio_api/file=http://127.0.0.1:1/",
        "file={folder}/secret.txt",
        "gradio_api/file/{folder}/secret.txt",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "static/../../../../../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "assets/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "sounds/..%2f..%2fsecret.txt",
        "sounds/{folder}/secret.txt.wav?start=0&end=1",
        "gradio_api/info",
        "gradio_api/openapi.json",
        "gradio_api/mcp/",
        "docs",
        "openapi.json",
        "monitoring",
        "gradio_api/vibe-code/",
    ],
)
def test_nothing_outside_the_library_is_served(page: Served, folder: Path, path: str) -> None:
    (uploads,) = page.scratch.glob("slap-fast-app-*/uploads")
    link = uploads / "link"
    if not link.is_symlink():
        link.symlink_to(folder / "secret.txt")
    status, answer, _ = ask(page, path.format(folder=quote(str(folder)), uploads=quote(str(uploads))))
    assert status in (400, 403, 404)
    assert "secret" not in answer.replace("secret.txt", "")
    assert "root:" not in answer


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "["])
def test_another_name_for_this_machine_is_refused(page: Served, host: str) -> None:
    status, answer, _ = ask(page, "config", headers={"Host": host or " "})
    assert status in (400, 421)
    assert "components" not in answer


def test_other_web_pages_can_neither_read_nor_write(page: Served) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert ask(page, "config", headers={"Origin": origin})[0] == 403
        assert upload(page, "a.wav", b"x", origin=origin)[0] == 403
    assert (
        ask(page, "sounds/r1.wav?start=0&end=1", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[
            0
        ]
        == 403
    )
    status, _, headers = ask(page, "")
    assert status == 200
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["access-control-allow-origin"] is None


def test_uploads_are_bounded_whatever_they_say_about_their_size(page: Served) -> None:
    status, answer, _ = upload(page, "big.wav", bytes(2 << 20))
    assert status == 413
    assert "larger than 1 MiB" in answer
    address = urlsplit(page.address)
    with socket.create_connection((str(address.hostname), address.port or 0), 10) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        assert b" 411 " in connection.recv(100)
    assert ask(page, "gradio_api/queue/join", data=bytes(2 << 20))[0] == 413


def test_a_malformed_upload_is_a_sentence(page: Served) -> None:
    search = function_of(page, "search", "click")
    for name, content in (
        ("noise.wav", os.urandom(999)),
        ("empty.wav", b""),
        ("cut.wav", b"RIFF\xff\xff\xff\xffWAVEfmt "),
    ):
        status, answer, _ = upload(page, name, content)
        assert status == 200
        (path,) = json.loads(answer)
        sound = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert "cannot be used" in call(page, search, ["", "", sound, "", "", "", 10])


def sent(page: Served, samples: np.ndarray, format: str = "WAV", *, kept: float = 1.0) -> dict[str, Any]:
    """An upload of samples, of which a part of the bytes is kept, as the page names it."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, "PCM_16", format=format)
    content = file.getvalue()
    (path,) = json.loads(upload(page, f"tone.{format.lower()}", content[: int(kept * len(content))])[1])
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_what_was_left_out_or_is_odd_is_said_with_the_result(page: Served) -> None:
    search, locate, caption = (function_of(page, name, "click") for name in ("search", "locate", "caption"))
    cut = sent(page, np.zeros(10 * RATE), kept=0.97)
    for answer in (
        call(page, search, ["", "", cut, "", "", "", 1]),
        call(page, locate, ["rain", 0.5, None, cut]),
        call(page, caption, ["", "", None, cut]),
    ):
        assert "tone.wav: cut short: the header declares 320000 bytes of audio, the file holds 310398." in answer
    long_text = "rain " * 90
    for answer in (
        call(page, search, ["", long_text, cut, "", "", "", 1]),
        call(page, locate, [long_text, 0.5, None, cut]),
    ):
        assert "is longer than the model takes: its end was left out" in answer
    empty = sent(page, np.zeros(0))
    for answer in (call(page, locate, ["rain", 0.5, None, empty]), call(page, caption, ["", "", None, empty])):
        assert "here are no samples in tone.wav" in answer
    assert "in tone.wav (0:09.7)" in call(page, locate, ["half a pair \ud83d", 0.5, None, cut])


def test_captions_are_of_at_most_ten_seconds_and_name_what_is_left(page: Served) -> None:
    caption = function_of(page, "caption", "click")
    sound = sent(page, np.zeros(124 * RATE), "FLAC")
    answer = call(page, caption, ["", "", None, sound])
    assert answer.count("<article") == 12
    assert "0:00 to 2:00 of tone.flac. It goes on, but at most 2:00 are described at once: enter 120 as the" in answer
    answer = call(page, caption, ["110", "", None, sound])
    assert answer.count("<article") == 2
    assert "1:50 to 2:04 of tone.flac." in answer
    assert "goes on" not in answer + call(page, caption, ["0", "5", None, sound])
    assert "ends at 124.0 s, before 130 s" in call(page, caption, ["130", "", None, sound])


def test_a_recording_of_any_name_is_handed_to_the_next_tab(page: Served, folder: Path) -> None:
    with Database(folder / "library") as database:
        (number,) = [each.id for each in database.recordings() if each.name.endswith(UNDECODABLE)]
    whole = function_of(page, "results", "whole")
    answer = call(page, whole, ["rain"], event_data={"recording": f"r{number}"})
    assert '"success":true' in answer.replace(" ", "")
    assert f"r{number}" in answer
    assert '"info":""' in answer.replace(" ", "")


def test_a_forged_upload_is_not_read(page: Served, folder: Path) -> None:
    search = function_of(page, "search", "click")
    paths = [str(folder / "sounds" / "long.wav"), "/etc/passwd", "../secret.txt", "", 1, None]
    for forged in (*paths, "http://127.0.0.1:1/a.wav", "http://example.com/a.wav", "HTTPS://example.com/a.wav"):
        sound = {"path": forged, "meta": {"_type": "gradio.FileData"}}
        answer = call(page, search, ["", "", sound, "", "", "", 10])
        assert answer == "this is not an uploaded file\n", forged
    twice = b'{"data": [{"path": "/etc/passwd", "path": 1}], "fn_index": 1, "session_hash": "s"}'
    assert ask(page, "gradio_api/queue/join", data=twice)[0] == 403
    for body in (b"[" * 100_000, b"{", b"\xff\xfe"):
        assert ask(page, "gradio_api/queue/join", data=body)[0] == 400
    (uploads,) = page.scratch.glob("slap-fast-app-*/uploads")
    assert not [copy for name in ("long.wav", "passwd", "a.wav") for copy in uploads.rglob(name)]


def test_forged_values_are_refused_with_a_sentence(page: Served) -> None:
    search, similar = function_of(page, "search", "click"), function_of(page, "results", "similar")
    cases: list[tuple[int, list[Any], dict[str, Any], str]] = [
        (search, ["", "", None, "", "", "", 10], {}, "type what to look for"),
        (search, ["x" * 501, "", None, "", "", "", 10], {}, "at most 500"),
        (search, ["dog", "", None, "", "5", "3", 10], {}, "exchange the two"),
        (search, ["dog", "", None, "", "<b>", "", 10], {}, "&lt;b&gt;” is not a time"),
    ]
    windows: list[Any] = ["0", "9" * 30, "-1", {}, 7.5]
    cases += [
        (similar, ["", "", "", 10], {"event_data": {"window": window}}, "no longer in the library")
        for window in windows
    ]
    for function, values, more, expected in cases:
        assert expected.lower() in json.loads(json.dumps(call(page, function, values, **more))).lower(), values
    # Gradio itself refuses what a component cannot have.
    for values in (
        ["dog", "", None, "/etc", "", "", 10],
        ["dog", "", None, "", "", "", 10**6],
        [[1], {}, 5, 5, [], [], "x"],
    ):
        assert '"success":false' in call(page, search, values).replace(" ", ""), values


@pytest.mark.parametrize("path", ["r0", "r999999", "r-1", "r1x", f"r{9**40}", "u", "ux", "%00", "r1%00"])
def test_sounds_that_do_not_exist_are_not_found(page: Served, path: str) -> None:
    assert ask(page, f"sounds/{path}.wav?start=0&end=1")[0] in (400, 404)
    assert ask(page, f"pictures/{path}.png?start=0&end=1")[0] in (400, 404)


@pytest.mark.parametrize(
    "span", ["start=1&end=1", "start=-1&end=2", "start=nan&end=2", "start=0&end=inf", "start=x&end=1"]
)
def test_times_that_are_no_stretch_are_refused(page: Served, span: str) -> None:
    assert ask(page, f"sounds/r1.wav?{span}")[0] == 400


def test_a_player_can_be_moved(page: Served) -> None:
    status, answer, headers = ask(page, "sounds/r1.wav?start=0&end=1", headers={"Range": "bytes=0-3"})
    assert (status, answer) == (206, "RIFF")
    assert headers["content-range"].startswith("bytes 0-3/")


def test_clips_of_a_prepared_dataset_are_heard_and_seen(page: Served, folder: Path) -> None:
    with Database(folder / "library") as database:
        numbers = [recording.id for recording in database.recordings() if recording.member]
    assert len(numbers) == 2
    for number in numbers:
        assert ask(page, f"sounds/r{number}.wav?start=0&end=1")[1].startswith("RIFF")
        assert ask(page, f"pictures/r{number}.png?start=0&end=1")[2]["content-type"] == "image/png"


def test_a_model_without_captions_is_said_to_have_none(tmp_path: Path) -> None:
    tiny_slap(("contrastive",), layers=1).save_pretrained(tmp_path / "model")
    with (
        Library(tmp_path / "library", model=tmp_path / "model") as library,
        pytest.raises(ModelError, match=r"objectives\.caption_weight=0"),
    ):
        Listener(library).check_captions()


def test_an_empty_library_says_what_to_do_and_nothing_is_left_of_its_page(tmp_path: Path, empty_library: Path) -> None:
    library = make_library(tmp_path, empty_library)
    scratch = tmp_path / "temporary"
    scratch.mkdir()
    # What `kill -9` leaves of a page.
    die = "import os; from slap_fast.app.scratch import make_folder; made = make_folder(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", die], env={**os.environ, "TMPDIR": str(scratch)}).returncode == -9
    (left,) = scratch.glob("slap-fast-app-*")
    without_lock = scratch / "slap-fast-app-killed-while-it-was-deleted"
    (without_lock / "uploads").mkdir(parents=True)
    os.utime(without_lock, (0, 0))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with served(library, "--port", str(port), scratch=scratch) as running:
            assert urlsplit(running.address).port != port
            assert not left.exists()
            assert not without_lock.exists()
            answer = call(running, function_of(running, "search", "click"), ["dog", "", None, "", "", "", 10])
            assert "no recordings yet" in answer
            sent(running, np.zeros(RATE))
            assert list(scratch.glob("slap-fast-app-*/uploads/*/tone.wav"))
            running.stop(signal.SIGTERM)
    assert not list(scratch.iterdir())
