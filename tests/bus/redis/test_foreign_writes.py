"""``RedisStreamsBus``: another client has written to the keys of a channel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis
from support.redis.processes import ShortLeaseMember, redis, redis_server, until
from support.workers import Requester, Responder

from pipecat_jobs import WorkerLostError
from pipecat_jobs.bus.redis import EmbeddedRedis, process

__all__ = ["redis", "redis_server"]

CHANNEL = "pipecat-jobs:{pipecat}"
Rename = Callable[[str], str]


@pytest.fixture(autouse=True)
def audits_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_AUDIT_EVERY", 0.3)


@contextlib.asynccontextmanager
async def pair(
    url: str, redis: Redis
) -> AsyncIterator[tuple[ShortLeaseMember, ShortLeaseMember, Rename]]:
    """A job that runs and one that waits for its slot; both have to end however the block ends."""
    async with (
        ShortLeaseMember(url, requester := Requester(), room=1) as asking,
        ShortLeaseMember(url, worker := Responder(), room=1) as working,
    ):
        await asking.wait_until_known("responder")
        running = asyncio.create_task(requester.ask("responder", "wait"))
        await worker.started.get()
        waiting = asyncio.create_task(requester.ask("responder", "wait"))
        await asyncio.sleep(0)
        await asking.wait_until_sent()
        ids = {"requester": asking.bus._process.id, "worker": working.bus._process.id}
        yield asking, working, lambda key: f"{CHANNEL}:{key.format_map(ids)}"
        worker.release.set()
        async with asyncio.timeout(100):
            for job in (running, waiting):
                with contextlib.suppress(WorkerLostError):
                    assert await job == {"from": "responder"}
            while True:
                with contextlib.suppress(WorkerLostError):
                    assert await requester.ask("responder", "echo")
                    break
    assert [key for key in await redis.keys() if await redis.pttl(key) < 0] == []


@pytest.mark.parametrize(
    "key",
    [
        "proc:{worker}",
        "proc:{requester}",
        "in:{worker}:d",
        "in:{worker}:u",
        "in:{requester}:d",
        "in:{requester}:u",
        "hosted:{worker}",
        "members",
        "names:responder",
        "hosts:responder",
        "queues:responder",
        "queue:9:responder:wait",
        "turns",
        "waiting",
    ],
)
async def test_every_job_ends_if_any_key_holds_another_type(
    redis_server: EmbeddedRedis, redis: Redis, key: str
):
    async with pair(redis_server.url, redis) as (_, _, named):
        await redis.delete(named(key))
        wrong = redis.set if key != "turns" else redis.lpush
        await wrong(named(key), "somebody else's")
        await redis.expire(named(key), 60)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("proc:{worker}", "n"),
        ("proc:{requester}", "n"),
        ("proc:{worker}", "busy"),
        ("proc:{worker}", "load:"),
        ("proc:{worker}", "held:"),
        ("proc:{requester}", "job:"),
        ("proc:{requester}", "req:"),
        ("hosts:responder", ""),
    ],
)
@pytest.mark.parametrize("value", ["somebody else's", "-7", "987654321"])
async def test_every_job_ends_if_a_field_holds_any_value(
    redis_server: EmbeddedRedis, redis: Redis, key: str, fields: str, value: str
):
    async with pair(redis_server.url, redis) as (_, _, named):
        for field in await redis.hkeys(named(key)):
            if field.startswith(fields):
                await redis.hset(named(key), field, value)


@pytest.mark.parametrize("key", ["proc:{worker}", "in:{worker}:u", "in:{worker}:d"])
async def test_a_process_whose_key_holds_another_type_joins_again_with_new_keys(
    redis_server: EmbeddedRedis, redis: Redis, key: str
):
    async with pair(redis_server.url, redis) as (_, working, named):
        before = working.bus._process.id
        await redis.delete(named(key))
        await redis.set(named(key), "somebody else's", ex=60)
        await until(lambda: working.bus._process.id != before)
        assert await redis.exists(named(key)) == 0
        assert before not in await redis.zrange(f"{CHANNEL}:members", 0, -1)
