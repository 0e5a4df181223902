"""Guard of the web page: refuses requests that the page itself does not make, before Gradio sees them.

The page has no password: whatever reaches it can hear the library. So other web pages in the same browser, names that
were made to point at this machine (DNS rebinding), files outside the folder of uploads, and the parts of Gradio that
this page does not use are refused here. The policy that the answers carry keeps the browser from loading anything from
elsewhere.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slap_fast.app.upload_folder import KEPT_UPLOADS, bytes_of

_MAX_JSON_BYTES = 1 << 20
_MULTIPART_BYTES = 64 << 10  # of an upload, beyond the file itself
_MAX_DRAINED = 1 << 30
_NO_LENGTH = "a request needs a Content-Length, and no Transfer-Encoding"
_TOO_LARGE = "the request is too large"
_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
_ROUTES = re.compile(
    r"/"
    r"|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    r"|/(assets|static)/[^?]*"
    r"|/(sounds|pictures|located)/[^?]*"
    r"|/gradio_api/(startup-events|upload_progress|queue/data|heartbeat/[^/]*|file=.*|theme\.css)"
)
_POST_ROUTES = re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)/?")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """ASGI application around another.

    Args:
        app: what is guarded.
        hosts: lowercase names under which the page may be asked for, besides addresses.
        any_address: whether any IP address is such a name; else those of this machine's loopback alone.
        uploads: the folder whose files may be read back.
        max_upload: bytes of one upload; all that are kept may have `KEPT_UPLOADS` times as many.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str], any_address: bool, uploads: Path, max_upload: int
    ) -> None:
        self._app = app
        self._hosts = set(hosts)
        self._any_address = any_address
        self._uploads = uploads.resolve()
        self._max_upload = max_upload
        self._arriving = 0  # bytes of uploads that are not complete yet

    def allow_host(self, name: str) -> None:
        """Also answer under this name, such as that of a public link."""
        self._hosts.add(name.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        status, reason = self._refusal(scope, headers)
        if status:
            if status in (413, 507):
                await _drain(receive)
            await PlainTextResponse(f"{reason}\n", status, headers=_HEADERS)(scope, receive, send)
            return

        if scope["method"] == "POST" and scope["path"].rstrip("/") != _UPLOAD:
            body = await _body(receive, _MAX_JSON_BYTES)
            status, reason = (413, _TOO_LARGE) if body is None else self._refusal_of_body(body)
            if body is None or status:
                await PlainTextResponse(f"{reason}\n", status, headers=_HEADERS)(scope, receive, send)
                return
            receive = _again(body, receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
                if scope["path"].startswith(_FILE):
                    # An upload that is opened as a page runs no script.
                    MutableHeaders(scope=message)["content-security-policy"] = "sandbox"
            await send(message)

        arriving = int(headers["content-length"]) if scope["path"].rstrip("/") == _UPLOAD else 0
        self._arriving += arriving
        try:
            await self._app(scope, receive, send_guarded)
        finally:
            self._arriving -= arriving

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Status and reason, or 0 if the request may pass."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return 421, (
                f"this page does not answer to the name {host[:100]!r}; open the address that slap-fast printed, or "
                "start it with --host NAME"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests of other web pages are refused"
        # Those of another port of this machine are "same-site"; a link to the page is followed from anywhere.
        is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if is_foreign and headers.get("sec-fetch-mode") != "navigate":
            return 403, "requests of other web pages are refused"
        # Of a request with both, some servers read as many bytes as are sent, whatever its length says.
        if "transfer-encoding" in headers:
            return 411, _NO_LENGTH
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            if not _ROUTES.fullmatch(path):
                return 404, "no such page"
            if path.startswith(_FILE) and not self._is_upload(path[len(_FILE) :]):
                return 403, "this is not an uploaded file"
            return 0, ""
        if method != "POST" or not _POST_ROUTES.fullmatch(path):
            return 404, "no such page"
        length = headers.get("content-length", "")
        if not length.isascii() or not length.isdecimal():
            return 411, _NO_LENGTH
        if path.rstrip("/") == _UPLOAD:
            if int(length) > self._max_upload + _MULTIPART_BYTES:
                return 413, f"the file is larger than {self._max_upload >> 20} MiB; cut it, or index it"
            limit = KEPT_UPLOADS * self._max_upload
            if bytes_of(self._uploads) + self._arriving + int(length) > limit:
                return 507, f"the uploads of the last hour fill the {limit >> 20} MiB for them; try again later"
        elif int(length) > _MAX_JSON_BYTES:
            return 413, _TOO_LARGE
        return 0, ""

    def _refusal_of_body(self, body: bytes) -> tuple[int, str]:
        """Status and reason, or 0 if each file that the values name is an upload: Gradio would fetch an address."""
        foreign = False

        def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal foreign
            for key, value in pairs:
                if key == "path" and not (isinstance(value, str) and self._is_upload(value)):
                    foreign = True
            return dict(pairs)

        try:
            json.loads(body, object_pairs_hook=look)
        except (ValueError, RecursionError):
            return 400, "the request is not JSON"
        return (403, "this is not an uploaded file") if foreign else (0, "")

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback

    def _is_upload(self, path: str) -> bool:
        try:
            return Path(path).is_absolute() and self._uploads in Path(path).resolve().parents
        except (OSError, ValueError, RuntimeError):
            return False


async def _drain(receive: Receive) -> None:
    """Read a body and forget it: a browser that is answered before it has sent all shows no answer."""
    drained = 0
    while drained < _MAX_DRAINED:
        message = await receive()
        drained += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if it has more bytes than `limit`."""
    parts, read = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        read += len(parts[-1])
        if read > limit:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What receives a body that was read already, and then what follows it."""
    rest = [body]

    async def received() -> Message:
        if rest:
            return {"type": "http.request", "body": rest.pop(), "more_body": False}
        return await receive()

    return received
