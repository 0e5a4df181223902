"""The guard before an application that takes everything, on real servers: what the page's own server might change."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio, which brings its server")

import uvicorn

from slap_fast.app.guard import Guard
from slap_fast.app.upload_folder import bytes_of, delete_old

MIB = 1 << 20


class Application:
    """Answers 200 to every request that the guard lets through, and counts the bytes of its body."""

    def __init__(self) -> None:
        self.read = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "http":
            message = await receive()
            self.read += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"passed"})


@contextmanager
def guarded(uploads: Path, http: str) -> Iterator[tuple[Application, int]]:
    application = Application()
    guard = Guard(application, hosts={"localhost"}, any_address=False, uploads=uploads, max_upload=MIB)
    server = uvicorn.Server(uvicorn.Config(guard, http=http, ws="none", lifespan="off", log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield application, listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def status_of(port: int, request: str, *headers: str, body: bytes = b"") -> int:
    lines = (f"{request} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", "")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        with suppress(OSError):  # it may be refused before all was sent
            connection.sendall("\r\n".join(lines).encode() + body)
        return int(connection.recv(100).split()[1])


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_requests_that_no_page_of_ours_makes_do_not_pass(tmp_path: Path, http: str) -> None:
    join, upload, get = "POST /gradio_api/queue/join", "POST /gradio_api/upload", "GET /pictures/r1.png"
    chunks = b"100000\r\n" + b" " * MIB + b"\r\n"
    with guarded(tmp_path, http) as (application, port):
        assert status_of(port, join, "Content-Length: 2", body=b"{}") == 200
        # A length beside chunks: whichever the server believes, the body is not read.
        for path in (join, upload):
            both = ("Content-Length: 5", "Transfer-Encoding: chunked")
            assert status_of(port, path, *both, body=chunks * 3 + b"0\r\n\r\n") in (400, 411)
        for site, mode, status in (
            ("same-origin", "no-cors", 200),
            ("none", "navigate", 200),
            ("same-site", "navigate", 200),
            ("same-site", "no-cors", 403),
            ("cross-site", "cors", 403),
        ):
            assert status_of(port, get, f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}") == status, (site, mode)
        assert application.read == 2


def test_all_uploads_together_are_bounded_and_old_ones_are_deleted_whoever_left_them(tmp_path: Path) -> None:
    (tmp_path / "0a1b").mkdir()
    (tmp_path / "tmpbroken").write_bytes(bytes(5 * MIB))  # as a broken off upload leaves it
    (tmp_path / "0a1b" / "whole.wav").write_bytes(bytes(5 * MIB - 100))
    upload = ("POST /gradio_api/upload", "Content-Length: 101")
    with guarded(tmp_path, "httptools") as (_, port):
        assert status_of(port, "POST /gradio_api/upload", "Content-Length: 100", body=bytes(100)) == 200
        assert status_of(port, *upload, body=bytes(101)) == 507
        os.utime(tmp_path / "tmpbroken", (0, 0))
        delete_old(tmp_path)
        assert bytes_of(tmp_path) == 5 * MIB - 100
        assert status_of(port, *upload, body=bytes(101)) == 200
        for path in (tmp_path / "0a1b" / "whole.wav", tmp_path / "0a1b"):
            os.utime(path, (0, 0))
        delete_old(tmp_path)  # a folder is as old as the deletion in it
        assert [path.name for path in tmp_path.rglob("*")] == ["0a1b"]
        os.utime(tmp_path / "0a1b", (0, 0))
        delete_old(tmp_path)
        assert not list(tmp_path.iterdir())
