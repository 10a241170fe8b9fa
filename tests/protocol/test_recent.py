"""Sets of recent keys."""

import asyncio
from collections.abc import Awaitable, Callable

from pipecat_jobs._protocol.recent import Expiring, Recent
from pipecat_jobs.testing import run_virtual


def test_recent_keeps_the_newest_keys():
    recent: Recent[str, int] = Recent(2)
    recent.remember("a", 1)
    recent.remember("b", 2)
    recent.remember("a", 3)
    recent.remember("c", 4)
    assert [recent.get(key) for key in "abc"] == [3, None, 4]
    assert recent.take("a") == 3
    assert "a" not in recent


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    run_virtual(main())


def test_expiring_keeps_any_number_of_keys_for_its_time():
    async def test() -> None:
        expiring: Expiring[int, int] = Expiring(60)
        for key in range(10_000):
            expiring.remember(key, key)
        await asyncio.sleep(59)
        assert [expiring.get(key) for key in (0, 9_999)] == [0, 9_999]
        assert expiring.take(0) == 0
        assert expiring.get(0) is None

    in_virtual_time(test)


def test_expiring_removes_old_keys_at_any_use():
    async def test() -> None:
        for use in (
            lambda memory: memory.remember("new", 1),
            lambda memory: memory.get("new"),
            lambda memory: memory.take("new"),
        ):
            expiring: Expiring[str, int] = Expiring(60)
            expiring.remember("old", 1)
            await asyncio.sleep(30)
            expiring.remember("newer", 2)
            await asyncio.sleep(31)
            use(expiring)
            assert expiring.get("old") is None
            assert expiring.get("newer") == 2

    in_virtual_time(test)


def test_expiring_keeps_a_key_that_is_remembered_again():
    async def test() -> None:
        expiring: Expiring[str, int] = Expiring(60)
        expiring.remember("a", 1)
        await asyncio.sleep(50)
        expiring.remember("b", 2)
        expiring.remember("a", 3)
        await asyncio.sleep(50)
        assert expiring.get("a") == 3
        assert len(expiring) == 2

    in_virtual_time(test)
