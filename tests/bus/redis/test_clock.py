"""The script of the channel, when the clock of the server is set back or forward."""

import pytest
from redis.asyncio import Redis
from support.redis.processes import redis, redis_server, until_async
from support.redis.script import PREFIX, Process, script

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")

MEMBERS, WAITING, BEAT = (f"{PREFIX}:{key}" for key in ("members", "waiting", "beat"))
#: Milliseconds that the clock jumps by.
JUMP = 600_000


async def set_clock(redis: Redis, by: int) -> None:
    """Change the stored times as if the clock had been that many milliseconds ahead."""
    for key in (MEMBERS, WAITING):
        for name, score in await redis.zrange(key, 0, -1, withscores=True):
            await redis.zadd(key, {name: score - by})
    await redis.set(BEAT, int(await redis.get(BEAT)) - by)


async def time_of(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds / 1000


async def test_a_dead_process_is_noticed_within_its_lease_after_the_clock_is_set_back(redis: Redis):
    alive, dead = [await Process(redis, name, lease=0.3).join() for name in "ab"]
    await set_clock(redis, -JUMP)
    assert await alive.call("renew") == "ok"
    assert await redis.zscore(MEMBERS, dead.id) <= await time_of(redis) + 300

    async def is_noticed() -> bool:
        assert await alive.call("renew") == "ok"
        return await redis.zscore(MEMBERS, dead.id) is None

    await until_async(is_noticed)
    assert await dead.call("renew") == "fenced"


async def test_a_request_that_waits_is_lost_in_time_after_the_clock_is_set_back(redis: Redis):
    requester = await Process(redis, "a", takeover=0.3).join()
    ref = await requester.ask("nobody")
    await set_clock(redis, -JUMP)

    async def is_lost() -> bool:
        assert await requester.call("renew") == "ok"
        return ("d", "l", ref, "unhosted") in await requester.read()

    await until_async(is_lost)


async def test_a_lease_longer_than_others_keeps_its_length(redis: Redis):
    one = await Process(redis, "a", lease=1).join()
    await Process(redis, "b", lease=1200).join()
    before = await redis.zscore(MEMBERS, "b")
    await one.call("renew")
    assert await redis.zscore(MEMBERS, "b") == before
    await set_clock(redis, -JUMP)
    await one.call("renew")
    assert await redis.zscore(MEMBERS, "b") <= await time_of(redis) + 1_200_000


async def test_no_living_process_is_declared_dead_when_the_clock_is_set_forward(redis: Redis):
    one, two, host = [await Process(redis, name, lease=20).join() for name in "abx"]
    await host.host("w")
    held, waiting = await one.ask("w"), await one.ask("nobody")
    await set_clock(redis, JUMP)
    for process in (two, one, host):
        assert await process.call("renew") == "ok"
    assert await host.jobs() == [(held, 1)]
    assert await one.read() == []
    assert await redis.zscore(WAITING, waiting) > await time_of(redis)
