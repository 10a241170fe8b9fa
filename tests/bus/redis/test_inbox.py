"""The inbox: messages that wait for a process at the server, and how they are read."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from support.redis.processes import redis, redis_server

from pipecat_jobs.bus._distributed.engine import Entry, UnreachableError
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.inbox import BATCH, Inbox
from pipecat_jobs.bus.redis.link import Command, Link, Reply

__all__ = ["redis", "redis_server"]


class Cuttable(Link):
    """A link whose next call may be cut, before the server receives it or before it replies."""

    cut: str | None = None

    def __init__(self, client: Redis):
        super().__init__(client, timeout=5)
        self.asked: list[list[str]] = []
        """The names of the commands of each call."""
        self.counts: list[int] = []
        """How many messages each read was for."""

    async def call(self, *commands: Command, wait: float = 0) -> list[Reply]:
        self.asked.append([str(name) for name, *_ in commands])
        self.counts += [int(command[2]) for command in commands if command[0] == "XREAD"]
        cut, self.cut = self.cut, None
        replies = [] if cut == "before" else await super().call(*commands, wait=wait)
        if cut:
            raise UnreachableError("cut")
        return replies


@pytest.fixture
async def link(redis_server: EmbeddedRedis) -> AsyncIterator[Cuttable]:
    async with Redis.from_url(redis_server.url) as client:
        link = Cuttable(client)
        yield link
        await link.close()


async def put(redis: Redis, lane: str, *bodies: str) -> None:
    for body in bodies:
        await redis.xadd(lane, {"k": "m", "r": "", "a": 0, "b": body})


async def read(inbox: Inbox) -> list[str]:
    found: list[Entry] = []
    await inbox.read(found.append)
    return [entry.body.decode() for entry in found]


async def test_urgent_messages_are_read_before_any_number_of_others(redis: Redis, link: Cuttable):
    inbox = Inbox(("u", "d"), link)
    urgent = [f"urgent {number}" for number in range(3 * BATCH)]
    await put(redis, "d", "data")
    await put(redis, "u", *urgent)
    assert await read(inbox) == [*urgent, "data"]


async def test_messages_that_were_read_are_removed_by_the_next_reading(
    redis: Redis, link: Cuttable
):
    inbox = Inbox(("u", "d"), link)
    for lane in "ud":
        await put(redis, lane, "first")
    assert await read(inbox) == ["first", "first"]
    for number in (2, 3):
        await put(redis, "d", f"number {number}")
        assert await read(inbox) == [f"number {number}"]
    assert (await redis.xlen("u"), await redis.xlen("d")) == (0, 1)
    assert link.asked == [["XREAD"], ["XTRIM", "XTRIM", "XREAD"], ["XTRIM", "XREAD"]]


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_messages_read_as_the_connection_breaks_are_read_again_and_handled_once(
    redis: Redis, link: Cuttable, cut: str
):
    inbox = Inbox(("u", "d"), link)
    for lane, body in (("d", "first"), ("u", "second")):
        await put(redis, lane, body)
        link.cut = cut
        with pytest.raises(UnreachableError):
            await read(inbox)
        assert await read(inbox) == [body]
    # Whether the first was removed from the server is unknown, so it is removed again.
    assert await redis.xlen("d") == 0


async def test_a_server_that_refuses_to_be_read_is_unreachable(redis: Redis, link: Cuttable):
    inbox = Inbox(("u", "d"), link)
    await redis.set("u", "no stream")
    with pytest.raises(UnreachableError, match="WRONGTYPE"):
        await read(inbox)


async def test_messages_that_do_not_arrive_in_time_are_read_in_smaller_parts(
    redis: Redis, link: Cuttable
):
    inbox = Inbox(("u", "d"), link)
    bodies = [f"number {number}" for number in range(BATCH)]
    await put(redis, "d", *bodies)
    for _ in range(4):
        link.cut = "after"
        with pytest.raises(UnreachableError):
            await read(inbox)
    found: list[str] = []
    while len(found) < BATCH:
        found += await read(inbox)
    assert found == bodies
    assert link.counts == [64, 16, 4, 1, 1, 2, 4, 8, 16, 32, 64]


async def test_urgent_messages_also_go_first_in_smaller_parts(redis: Redis, link: Cuttable):
    inbox = Inbox(("u", "d"), link)
    for _ in range(4):
        link.cut = "before"
        with pytest.raises(UnreachableError):
            await read(inbox)
    urgent = [f"urgent {number}" for number in range(10)]
    await put(redis, "d", "data")
    await put(redis, "u", *urgent)
    assert await read(inbox) == [*urgent, "data"]
