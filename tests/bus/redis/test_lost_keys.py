"""``RedisStreamsBus``: a server that has lost a key, by eviction or because a client deleted it."""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis
from support.redis.processes import ShortLeaseMember, redis, redis_server
from support.workers import Answerer, Asker

from pipecat_jobs import WorkerLostError
from pipecat_jobs.bus.redis import EmbeddedRedis, process

__all__ = ["redis", "redis_server"]


@pytest.mark.parametrize(
    "key",
    [
        "members",
        "proc:{worker}",
        "proc:{asker}",
        "in:{worker}:d",
        "in:{worker}:u",
        "in:{asker}:d",
        "hosted:{worker}",
        "names:answerer",
        "hosts:answerer",
        "queues:answerer",
        "queue:8:answerer:wait",
    ],
)
async def test_every_job_ends_if_the_server_loses_any_key(
    redis_server: EmbeddedRedis, redis: Redis, key: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(process, "_AUDIT_EVERY", 0.3)
    async with (
        ShortLeaseMember(redis_server.url, asker := Asker(), room=1) as asking,
        ShortLeaseMember(redis_server.url, worker := Answerer(), room=1) as working,
    ):
        await asking.wait_until_known("answerer")
        running = asyncio.create_task(asker.ask("answerer", "wait"))
        await worker.started.get()
        waiting = asyncio.create_task(asker.ask("answerer", "wait"))
        await asyncio.sleep(0)
        await asking.wait_until_sent()
        ids = {"asker": asking.bus._process.id, "worker": working.bus._process.id}
        assert await redis.delete(f"pipecat-jobs:{{pipecat}}:{key.format_map(ids)}") == 1
        worker.release.set()
        async with asyncio.timeout(100):
            for job in (running, waiting):
                with contextlib.suppress(WorkerLostError):
                    assert await job == {"from": "answerer"}
            # The process sends the lost entries again, but not at once.
            while True:
                with contextlib.suppress(WorkerLostError):
                    assert await asker.ask("answerer", "echo")
                    break
    # No process knows of the remaining keys any more; they expire.
    assert [key for key in await redis.keys() if await redis.pttl(key) < 0] == []
