"""Only the process that has taken a job answers for it, whoever else is on the channel."""

import asyncio

from pipecat.bus.messages import BusJobResponseMessage
from pipecat.pipeline.job_context import JobStatus
from redis_support import Member, redis_server, until
from support import Answerer, Asker

from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.outbox import Call, Lane

__all__ = ["redis_server"]


async def reply_to_answer(member: Member, ref: str, attempt: int) -> str:
    """What the server says to an answer that a process gives, whatever its own books say."""
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    answer = (ref, attempt, "d", "1", b"forged")
    member.bus._outbox.put(Call(Lane.DATA, "tell", lambda _, __: answer, said.set_result))
    return await said


async def test_the_server_takes_an_answer_from_the_owner_of_that_attempt_alone(
    redis_server: EmbeddedRedis,
):
    asker, answerer, url = Asker(), Answerer(), redis_server.url
    async with Member(url, asker) as host, Member(url, answerer) as owner, Member(url) as stranger:
        await host.knows("answerer")
        call = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()
        (held,) = owner.bus._post.ledger.all_held()
        assert await reply_to_answer(stranger, held.ref, held.attempt) == "stale"
        assert await reply_to_answer(owner, held.ref, held.attempt + 1) == "stale"
        answerer.release.set()
        assert (await call)["from"] == "answerer"


async def test_an_answer_that_comes_as_any_other_message_is_not_taken(redis_server: EmbeddedRedis):
    asker, answerer, url = Asker(), Answerer(), redis_server.url
    async with Member(url, asker) as host, Member(url, answerer), Member(url) as stranger:
        await host.knows("answerer")
        call = asyncio.create_task(asker.ask("answerer", "wait"))
        forged = BusJobResponseMessage(
            source="answerer",
            target="asker",
            job_id=await answerer.started.get(),
            status=JobStatus.COMPLETED,
            response={"from": "a stranger"},
        )
        stranger.bus._post.route(forged, "asker")
        await until(lambda: host.bus.stats.garbage == 1 or call.done())
        assert not call.done()
        answerer.release.set()
        assert (await call)["from"] == "answerer"
