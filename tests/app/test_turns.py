"""Which picture is drawn next."""

from __future__ import annotations

import asyncio

import pytest

from slap_fast.app.turns import StoppingError, Turns


def test_what_was_asked_for_last_comes_first_and_in_order_within_a_search() -> None:
    async def drawn() -> list[str]:
        turns, done, first = Turns(), [], asyncio.Event()

        async def draw(group: str, number: int) -> None:
            async with turns.turn(group):
                await first.wait()
                done.append(f"{group}{number}")

        wishes = [("old", 0), ("old", 1), ("old", 2), ("new", 0), ("new", 1), ("new", 2)]
        tasks = {}
        for wish in wishes:
            tasks[wish] = asyncio.create_task(draw(*wish))
            await asyncio.sleep(0)
        tasks["new", 1].cancel()
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return done

    assert asyncio.run(drawn()) == ["old0", "new0", "new2", "old1", "old2"]


def test_a_turn_that_is_given_to_one_that_leaves_goes_to_the_next() -> None:
    async def drawn() -> str:
        turns = Turns()

        async def draw() -> str:
            async with turns.turn(""):
                return "drawn"

        async with turns.turn(""):
            leaves, stays = asyncio.create_task(draw()), asyncio.create_task(draw())
            await asyncio.sleep(0)
        leaves.cancel()
        return await asyncio.wait_for(stays, 10)

    assert asyncio.run(drawn()) == "drawn"


def test_nothing_that_waits_is_begun_when_the_page_stops() -> None:
    async def refused() -> None:
        turns = Turns()

        async def draw() -> None:
            async with turns.turn(""):
                raise AssertionError("it was begun")

        async with turns.turn(""):
            waiting = asyncio.create_task(draw())
            await asyncio.sleep(0)
            turns.stop()
        for late in (waiting, draw()):
            with pytest.raises(StoppingError):
                await late

    asyncio.run(refused())
