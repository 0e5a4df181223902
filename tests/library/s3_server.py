"""A stand-in for S3 on this machine: one bucket in memory, with the requests that LanceDB makes."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of the server, and the objects of all buckets by `bucket/key`."""
    objects: dict[str, bytes] = {}
    handler = type("Handler", (_Handler,), {"objects": objects, "lock": threading.Lock(), "uploads": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", objects
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]
    lock: threading.Lock

    def do_GET(self) -> None:
        name, query = self._target()
        if "list-type" in query:
            self._list(name, query)
            return
        content = self.objects.get(name)
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._answer(200, content, etag=content)
            return
        first = int(span[1]) if span[1] else len(content) - int(span[2])
        last = min(int(span[2]), len(content) - 1) if span[1] and span[2] else len(content) - 1
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._answer(206, content[first : last + 1], headers, etag=content)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        name, query = self._target()
        body = self._body()
        source = self.headers.get("x-amz-copy-source")
        with self.lock:
            if "uploadId" in query:
                self.uploads[query["uploadId"]][int(query["partNumber"])] = body
                self._answer(200, b"", etag=body)
                return
            if self.headers.get("If-None-Match") == "*" and name in self.objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.objects[name] = body if source is None else self.objects[unquote(source).lstrip("/")]
        self._answer(200, b"<CopyObjectResult/>" if source else b"", etag=body)

    def do_POST(self) -> None:
        name, query = self._target()
        body = self._body()
        with self.lock:
            if "uploads" in query:
                number = str(len(self.uploads))
                self.uploads[number] = {}
                reply = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            elif "uploadId" in query:
                parts = self.uploads.pop(query["uploadId"])
                self.objects[name] = b"".join(parts[number] for number in sorted(parts))
                reply = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
            else:  # a list of objects to delete
                bucket = name.split("/")[0]
                for key in re.findall(rb"<Key>(.*?)</Key>", body):
                    self.objects.pop(f"{bucket}/{key.decode()}", None)
                reply = "<DeleteResult/>"
        self._answer(200, reply.encode())

    def do_DELETE(self) -> None:
        name, _ = self._target()
        with self.lock:
            self.objects.pop(name, None)
        self._answer(204, b"")

    def log_message(self, *_: object) -> None:
        pass

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        bucket = bucket.rstrip("/")
        prefix, delimiter, after = (query.get(key, "") for key in ("prefix", "delimiter", "start-after"))
        folders, contents = set(), []
        for name, content in sorted(self.objects.items()):
            key = name.removeprefix(f"{bucket}/")
            if key == name or not key.startswith(prefix) or key <= after:
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                contents.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{_etag(content)}</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        common = [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        listing = "".join(contents + common)
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listing}</ListBucketResult>"
        self._answer(200, body.encode())

    def _target(self) -> tuple[str, dict[str, str]]:
        """`bucket/key`, and the parameters of the request."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).lstrip("/"), query

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, etag: bytes | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if etag is not None:
            self.send_header("ETag", _etag(etag))
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
