"""``RedisStreamsBus``: a server that has lost a key, by eviction or because a client deleted it."""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis
from support.redis.processes import ShortLeaseMember, redis, redis_server
from support.workers import Requester, Responder

from pipecat_jobs import WorkerLostError
from pipecat_jobs.bus.redis import EmbeddedRedis, process

__all__ = ["redis", "redis_server"]


@pytest.mark.parametrize(
    "key",
    [
        "members",
        "proc:{worker}",
        "proc:{requester}",
        "in:{worker}:d",
        "in:{worker}:u",
        "in:{requester}:d",
        "hosted:{worker}",
        "names:responder",
        "hosts:responder",
        "queues:responder",
        "queue:9:responder:wait",
    ],
)
async def test_every_job_ends_if_the_server_loses_any_key(
    redis_server: EmbeddedRedis, redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(process, "_AUDIT_EVERY", 0.3)
    async with (
        ShortLeaseMember(redis_server.url, requester := Requester(), room=1) as asking,
        ShortLeaseMember(redis_server.url, worker := Responder(), room=1) as working,
    ):
        await asking.wait_until_known("responder")
        running = asyncio.create_task(requester.ask("responder", "wait"))
        await worker.started.get()
        waiting = asyncio.create_task(requester.ask("responder", "wait"))
        await asyncio.sleep(0)
        await asking.wait_until_sent()
        ids = {"requester": asking.bus._process.id, "worker": working.bus._process.id}
        assert await redis.delete(f"pipecat-jobs:{{pipecat}}:{key.format_map(ids)}") == 1
        worker.release.set()
        async with asyncio.timeout(100):
            for job in (running, waiting):
                with contextlib.suppress(WorkerLostError):
                    assert await job == {"from": "responder"}
            # The process sends the lost entries again, but not at once.
            while True:
                with contextlib.suppress(WorkerLostError):
                    assert await requester.ask("responder", "echo")
                    break
    # No process knows of the remaining keys any more; they expire.
    assert [key for key in await redis.keys() if await redis.pttl(key) < 0] == []
