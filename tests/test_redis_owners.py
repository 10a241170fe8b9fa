"""Only the process that has taken a job answers for it, whoever else is on the channel."""

import asyncio

from pipecat.bus.messages import BusJobResponseMessage
from pipecat.pipeline.job_context import JobStatus
from redis.asyncio import Redis
from redis_script import Process, held_jobs, script
from redis_support import Member, redis, redis_server, until
from support import Answerer, Asker

from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.wire import WireCodec

__all__ = ["redis", "redis_server", "script"]


def forged(job_id: str) -> bytes:
    """An answer as any process of the channel can write it."""
    answer = BusJobResponseMessage(
        source="answerer",
        target="asker",
        job_id=job_id,
        status=JobStatus.COMPLETED,
        response={"from": "a stranger"},
    )
    return Envelopes("pipecat").seal("d", "stranger", 1, WireCodec().encode(answer))


async def test_the_server_takes_an_answer_from_the_owner_of_a_job_alone(
    redis_server: EmbeddedRedis, script: Redis
):
    asker, answerer, url = Asker(), Answerer(), redis_server.url
    async with Member(url, asker) as host, Member(url, answerer):
        stranger = await Process(script, "stranger", channel="pipecat").join()
        await host.knows("answerer")
        call = asyncio.create_task(asker.ask("answerer", "wait"))
        body = forged(await answerer.started.get())
        [ref] = await held_jobs(script)
        assert await stranger.say("tell", ref, 1, "d", "m", "1", body) == "stale"
        answerer.release.set()
        assert (await call)["from"] == "answerer"
        await stranger.call("leave")


async def test_an_answer_that_comes_as_any_other_message_is_not_taken(
    redis_server: EmbeddedRedis, script: Redis
):
    asker, answerer, url = Asker(), Answerer(), redis_server.url
    async with Member(url, asker) as host, Member(url, answerer):
        stranger = await Process(script, "stranger", channel="pipecat").join()
        await host.knows("answerer")
        call = asyncio.create_task(asker.ask("answerer", "wait"))
        body = forged(await answerer.started.get())
        await stranger.say("route", "d", "asker", body, "0")
        await until(lambda: host.bus.stats.garbage == 1 or call.done())
        assert not call.done()
        answerer.release.set()
        assert (await call)["from"] == "answerer"
        await stranger.call("leave")
