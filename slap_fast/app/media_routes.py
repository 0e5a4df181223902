"""Routes of sounds, pictures and tables. All are made in memory when they are asked for."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

from slap_fast.app.desk import Desk
from slap_fast.app.errors import PageError
from slap_fast.app.pictures import NARROW, WIDE, Curve, draw_sound
from slap_fast.app.turns import StoppingError, Turns
from slap_fast.audio.errors import AudioError
from slap_fast.errors import SlapFastError, one_line

_KEPT_PICTURES = 64
_MIN_SECONDS = 0.05  # shorter stretches are no picture
_CACHED = {"cache-control": "private, max-age=600"}
_GONE = 499  # as nginx has it: the client left, and reads no answer
_TYPES = {"csv": "text/csv; charset=utf-8", "txt": "text/plain; charset=utf-8", "png": "image/png"}


def media_routes(desk: Desk, turns: Turns) -> APIRouter:
    """`/sounds/KEY.wav`, `/pictures/KEY.png` and `/located/KEY.png|csv|txt`; pictures also with `narrow=1`.

    Pictures are drawn one at a time, those of the newest query first, and only for clients that still wait.
    They answer 404 with a sentence for what does not exist, 400 for times that are no stretch.
    """
    router = APIRouter()
    pictures = _Pictures(desk)

    # Decoding and drawing are done in threads, where FastAPI also runs plain functions: else the page would stop for
    # everyone.
    @router.get("/sounds/{key}.wav")
    def sound(request: Request, key: str, start: str, end: str) -> Response:
        return _answered(
            lambda: _ranged(desk.sounds.wav(key, *_span(start, end)), request.headers.get("range"), "audio/wav")
        )

    @router.get("/pictures/{key}.png")
    async def picture(
        request: Request, key: str, start: str, end: str, query: str = "", narrow: bool = False
    ) -> Response:
        def draw() -> Response:
            content = pictures.of(key, *_span(start, end), query, narrow)
            return Response(content, media_type="image/png", headers=_CACHED)

        try:
            async with turns.turn(query):
                if await request.is_disconnected():
                    return Response(status_code=_GONE)
                return await run_in_threadpool(_answered, draw)
        except StoppingError as error:
            return PlainTextResponse(f"{error}\n", 503)

    @router.get("/located/{key}.{ending}")
    def located(key: str, ending: str, narrow: bool = False) -> Response:
        found = desk.located.get(key)
        content = None
        if found is not None:
            picture = found.narrow if narrow else found.picture
            content = picture if ending == "png" else found.tables.get(ending)
        if found is None or content is None:
            return PlainTextResponse("This result is no longer kept; locate again.\n", 404)
        name = quote(f"{found.name}.{ending}")
        headers = {} if ending == "png" else {"content-disposition": f"attachment; filename*=UTF-8''{name}"}
        return Response(content, media_type=_TYPES[ending], headers=_CACHED | headers)

    return router


class _Pictures:
    """Draws pictures, and keeps the last ones. One thread uses it at a time."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._kept: OrderedDict[tuple[str, float, float, str, bool], bytes] = OrderedDict()

    def of(self, key: str, start: float, end: float, query: str, narrow: bool) -> bytes:
        """
        Raises:
            PageError, AudioError, DatasetError: as `Sounds.stretch`, or the model cannot be loaded.
        """
        name = (key, start, end, query, narrow)
        if name not in self._kept:
            self._kept[name] = self._draw(*name)
            while len(self._kept) > _KEPT_PICTURES:
                self._kept.popitem(last=False)
        return self._kept[name]

    def _draw(self, key: str, start: float, end: float, query: str, narrow: bool) -> bytes:
        with self._desk.listener.model() as model:
            config = model.config.mel
        samples = self._desk.sounds.stretch(key, start, end, config.sample_rate).samples
        samples = np.pad(samples, (0, max(0, round(_MIN_SECONDS * config.sample_rate) - len(samples))))
        asked = self._desk.queries.get(query)
        curve = None
        if asked is not None:
            times, columns = self._desk.listener.columns(samples)
            curve = Curve(times, columns @ asked.vector)
        return draw_sound(samples, config, start=start, curve=curve, shape=NARROW if narrow else WIDE)


def _answered(make: Callable[[], Response]) -> Response:
    """The response, or a sentence about why there is none."""
    try:
        return make()
    except _SpanError as error:
        return PlainTextResponse(f"{error}\n", 400)
    except AudioError as error:
        return PlainTextResponse(f"The recording cannot be read any more: {one_line(error)}\n", 404)
    except (PageError, SlapFastError, OSError) as error:
        return PlainTextResponse(f"{one_line(error)}\n", 404)


class _SpanError(PageError):
    """Times of a request that are none."""


def _span(start: str, end: str) -> tuple[float, float]:
    try:
        times = float(start), float(end)
    except ValueError:
        times = math.nan, math.nan
    if not 0 <= times[0] < times[1] < math.inf:
        raise _SpanError("start and end must be seconds, 0 <= start < end")
    return times


def _ranged(content: bytes, asked: str | None, media_type: str) -> Response:
    """The content, or the part of it that a browser asks for when a player is moved."""
    headers = {"accept-ranges": "bytes", **_CACHED}
    found = re.fullmatch(r"bytes=(\d{1,15})-(\d{0,15})", asked or "")
    if not found:
        return Response(content, media_type=media_type, headers=headers)
    first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
    if first > last:
        return Response(status_code=416, headers={"content-range": f"bytes */{len(content)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, media_type=media_type, headers=headers)
