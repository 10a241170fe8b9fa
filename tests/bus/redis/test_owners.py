"""Only the process that has taken a job can respond to it; other processes cannot."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pipecat.bus.messages import BusJobResponseMessage
from pipecat.pipeline.job_context import JobStatus
from redis.asyncio import Redis
from support.redis.processes import Member, redis, redis_server
from support.redis.script import Process, held_jobs, script
from support.workers import Requester, Responder

from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.wire import WireCodec

__all__ = ["redis", "redis_server", "script"]


def forged(job_id: str) -> bytes:
    """A response as any process of the channel can write it."""
    response = BusJobResponseMessage(
        source="responder",
        target="requester",
        job_id=job_id,
        status=JobStatus.COMPLETED,
        response={"from": "another process"},
    )
    return Envelopes("pipecat").seal("d", "other", 1, WireCodec().encode(response))


@contextlib.asynccontextmanager
async def at_work(url: str, script: Redis) -> AsyncIterator[tuple[Member, Process, bytes]]:
    """A job that completes: the requester's process, another process and its forged response."""
    requester, responder = Requester(), Responder()
    async with Member(url, requester) as host, Member(url, responder):
        other = await Process(script, "other", channel="pipecat").join()
        await host.wait_until_known("responder")
        call = asyncio.create_task(requester.ask("responder", "wait"))
        yield host, other, forged(await responder.started.get())
        assert not call.done()
        responder.release.set()
        assert (await call)["from"] == "responder"
        await other.call("leave")


async def test_the_server_takes_a_response_only_from_the_owner_of_the_job(
    redis_server: EmbeddedRedis, script: Redis
):
    async with at_work(redis_server.url, script) as (_, other, body):
        [ref] = await held_jobs(script)
        assert await other.call_once("notify_requester", ref, 1, "d", "m", "1", body) == "stale"


async def test_a_response_that_is_sent_as_another_kind_of_message_is_not_taken(
    redis_server: EmbeddedRedis, script: Redis
):
    async with at_work(redis_server.url, script) as (host, other, body):
        await other.call_once("route", "d", "requester", body, "0")
        await host.wait_until_caught_up()
        assert host.bus.stats.garbage == 1
