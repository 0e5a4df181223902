"""Server of the page: one process, one library, until it is interrupted."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from slap_fast.app.errors import PageError
from slap_fast.app.scratch import delete_left_folders, make_folder
from slap_fast.app.upload_folder import delete_old_regularly
from slap_fast.app.uploads import MAX_UPLOAD_MIB
from slap_fast.errors import MissingExtraError
from slap_fast.library.library import Library

PORT = 7860
_TRIED_PORTS = 100
_LOCAL = ("127.0.0.1", "localhost", "::1")
_ANY = ("0.0.0.0", "::", "")


def serve(
    library: Library,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    share: bool = False,
    max_upload_mib: int = MAX_UPLOAD_MIB,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page of a library until SIGINT or SIGTERM.

    Args:
        library: open; it may be written by an indexer meanwhile.
        host: address to listen on. Any other than that of this machine's loopback lets others in: there is no password.
        port: taken if it is free, else the next one that is; 0: any.
        share: also through a public link of Gradio's servers, for everyone who has the link.
        max_upload_mib: size of an upload.
        ready: is called with the address when the page can be opened.

    Raises:
        MissingExtraError: Gradio is not installed.
        PageError: no port is free, or the public link cannot be made.
        OSError: the address is not one of this machine.
    """
    # Uvicorn stops at SIGTERM and then raises it again, which by default ends Python before anything is deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    listening = _listen(host, port)
    delete_left_folders()
    scratch, lock = make_folder()
    try:
        _set_environment(scratch)
        _run(library, listening, scratch, host=host, share=share, max_upload_mib=max_upload_mib, ready=ready)
    finally:
        listening.close()
        shutil.rmtree(scratch, ignore_errors=True)
        lock.close()
        gc.freeze()  # else Ctrl+C takes seconds: when Python ends, it looks through all objects of Gradio and torch


def _run(
    library: Library,
    listening: socket.socket,
    scratch: Path,
    *,
    host: str,
    share: bool,
    max_upload_mib: int,
    ready: Callable[[str], None],
) -> None:
    try:
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI
    except ImportError as error:
        raise MissingExtraError('the page needs Gradio: pip install "slap-fast[app]"') from error
    from slap_fast.app.desk import Desk
    from slap_fast.app.guard import Guard
    from slap_fast.app.media_routes import media_routes
    from slap_fast.app.page import build_page, head, style, theme
    from slap_fast.app.turns import Turns

    uploads = scratch / "uploads"
    uploads.mkdir()
    delete_old_regularly(uploads)
    desk = Desk.of(library, uploads)
    turns = Turns()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(media_routes(desk, turns))
    page = build_page(desk)
    # Of a page that was not launched but mounted, Gradio copies any file whose path a client sends to its uploads.
    page.has_launched = True
    # Every option that has an environment variable is given, so that none opens what is closed here.
    gr.mount_gradio_app(
        app,
        page,
        path="",
        server_name=host,
        server_port=listening.getsockname()[1],
        footer_links=[],
        run_history=False,
        root_path="",
        allowed_paths=[],
        show_error=False,
        max_file_size=max_upload_mib << 20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=style(),
        head=head(),
    )
    names = {*_LOCAL, host.lower()} | (
        {socket.gethostname().lower(), socket.getfqdn().lower()} if host in _ANY else set()
    )
    guard = Guard(
        app,
        hosts=names - set(_ANY),
        any_address=host not in _LOCAL,
        uploads=uploads,
        max_upload=max_upload_mib << 20,
    )
    address = _address(host, listening.getsockname()[1])
    config = uvicorn.Config(
        guard, log_level="warning", access_log=False, ws="none", lifespan="on", timeout_graceful_shutdown=3
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                ready(address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
            turns.stop()
            await super().shutdown(sockets)

    if share:
        public = _public_link(listening.getsockname()[1])
        guard.allow_host(public.partition("://")[2].strip("/"))
        print(f"public address: {public}", flush=True)
    Server(config).run([listening])


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Filter of what uvicorn logs when the page is stopped: that answers were broken off then is no error."""
    return not (
        str(record.msg).startswith("Cancel %s running task(s)")
        or (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket on the first free port from `port` on."""
    family = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)[0][0]
    for candidate in range(port, min(port + _TRIED_PORTS, 65536)):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise
        if candidate != port:
            print(f"slap-fast app: port {port} is in use; {candidate} is taken", file=sys.stderr)
        return listening
    raise PageError(f"ports {port} to {port + _TRIED_PORTS - 1} are in use; give another one with --port")


def _set_environment(scratch: Path) -> None:
    """Settings that Gradio reads when it is imported; the user's might open what is closed here."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(scratch / "uploads")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    tempfile.tempdir = str(scratch)  # what libraries leave there goes with it


def _address(host: str, port: int) -> str:
    name = "127.0.0.1" if host in _ANY else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def _public_link(port: int) -> str:
    from gradio.networking import setup_tunnel

    try:
        return setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # of many libraries: no network, no binary for this machine, a refused certificate
        raise PageError(f"no public link could be made ({error}); leave --share out") from error
