"""The floor: who holds it, and for how long it has been free."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pipecat_jobs import InvalidJobError
from pipecat_jobs.conversation import Floor, FloorHolder
from pipecat_jobs.testing import run_virtual


def play(story: Callable[[Floor], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(Floor())

    run_virtual(main())


def at(seconds: float, call: Callable[[FloorHolder], None], holder: FloorHolder) -> None:
    asyncio.get_running_loop().call_at(seconds, call, holder)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_new_floor_is_free():
    async def story(floor: Floor) -> None:
        assert floor.holder is None
        assert floor.since is None
        await floor.until_free(0.7)
        assert now() == 0

    play(story)


def test_the_user_is_named_before_the_bot():
    async def story(floor: Floor) -> None:
        floor.take(FloorHolder.BOT)
        await asyncio.sleep(1)
        floor.take(FloorHolder.USER)
        assert floor.holder is FloorHolder.USER
        assert floor.since == 1
        floor.release(FloorHolder.USER)
        assert floor.holder is FloorHolder.BOT
        assert floor.since == 0

    play(story)


def test_it_is_free_since_the_last_holder_released_it():
    async def story(floor: Floor) -> None:
        floor.take(FloorHolder.USER)
        floor.take(FloorHolder.TOOL)
        at(2, floor.release, FloorHolder.USER)
        at(3, floor.release, FloorHolder.TOOL)
        await floor.until_free()
        assert now() == 3
        assert floor.since == 3
        await floor.until_free(0.7)
        assert now() == pytest.approx(3.7)

    play(story)


def test_a_silence_that_has_lasted_is_not_waited_for_again():
    async def story(floor: Floor) -> None:
        floor.take(FloorHolder.USER)
        floor.release(FloorHolder.USER)
        await asyncio.sleep(5)
        await floor.until_free(0.7)
        assert now() == 5

    play(story)


def test_speech_at_the_last_moment_counts():
    async def story(floor: Floor) -> None:
        floor.take(FloorHolder.USER)
        floor.release(FloorHolder.USER)
        at(5, floor.take, FloorHolder.USER)
        at(7, floor.release, FloorHolder.USER)
        await floor.until_free(5)
        assert now() == 12

    play(story)


def test_code_holds_it_until_the_last_block_ends():
    async def story(floor: Floor) -> None:
        async with floor.hold():
            async with floor.hold():
                assert floor.holder is FloorHolder.CODE
            assert floor.holder is FloorHolder.CODE
        assert floor.holder is None

    play(story)


def test_a_negative_silence_is_refused():
    async def story(floor: Floor) -> None:
        with pytest.raises(InvalidJobError, match="quiet is -1"):
            await floor.until_free(-1)

    play(story)
