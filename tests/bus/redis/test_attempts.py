"""``RedisStreamsBus``: a second attempt in another process, and retries of a job that was lost."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.redis.processes import Member, ShortLeaseMember, redis, redis_server
from support.workers import Requester

from pipecat_jobs import BaseWorker, JobError, OutcomeStatus, Retry, job, job_attempt
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]


class Library(BaseWorker):
    """A worker that is stuck in every process but one."""

    def __init__(self) -> None:
        super().__init__("library")
        self.begun = asyncio.Event()
        self.proceed = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.attempt = 0

    @job(name="find")
    async def find(self, message: BusJobRequestMessage) -> dict:
        self.attempt = job_attempt(message)
        self.begun.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"by": id(self)}

    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        return await self.find(message)


class StickyLibrary(Library):
    job_affinity = "requester"


@pytest.mark.parametrize("kind", [Library, StickyLibrary])
async def test_a_second_attempt_runs_in_another_process_of_the_pool(
    redis_server: EmbeddedRedis, kind: type[Library]
):
    libraries = [kind(), kind()]
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, libraries[0]),
        Member(redis_server.url, libraries[1]),
    ):
        await member.wait_until_known("library")
        async with requester.job("library", name="find", timeout=60, hedge_after=0.05) as j:
            for each in libraries:
                await each.begun.wait()
            [first, second] = sorted(libraries, key=lambda each: each.attempt)
            second.proceed.set()
        assert j.response == {"by": id(second)}
        assert (first.attempt, second.attempt) == (1, 2)
        await first.cancelled.wait()
        assert not second.cancelled.is_set()


async def test_a_lost_job_is_asked_again_when_a_process_has_its_worker_again(
    redis_server: EmbeddedRedis,
):
    # On a busy machine the second process may come too late for several attempts.
    retry = Retry(attempts=20, wait_initial=0)
    first, second = Library(), Library()
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        async with ShortLeaseMember(redis_server.url, first) as leaving:
            await member.wait_until_known("library")
            asking = asyncio.create_task(requester.ask("library", "find", timeout=60, retry=retry))
            await first.begun.wait()
            # The process that leaves would otherwise get the second attempt as well.
            draining = asyncio.create_task(leaving.bus.drain())
            await leaving.wait_until_caught_up()
            await requester.worker_lost("library", reason="its machine is down")
            await first.cancelled.wait()
            await draining
        async with ShortLeaseMember(redis_server.url, second):
            await second.begun.wait()
            second.proceed.set()
            assert await asking == {"by": id(second)}
    assert second.attempt >= 2


async def test_a_run_once_job_whose_process_is_gone_does_not_begin_again(
    redis_server: EmbeddedRedis,
):
    first, second = Library(), Library()
    second.proceed.set()
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        async with ShortLeaseMember(redis_server.url, first):
            await member.wait_until_known("library")
            asking = asyncio.create_task(
                requester.ask("library", "pay", timeout=60, retry=Retry(wait_initial=0))
            )
            await first.begun.wait()
            await requester.worker_lost("library", reason="its machine is down")
            await first.cancelled.wait()
        async with ShortLeaseMember(redis_server.url, second):
            with pytest.raises(JobError) as raised:
                await asking
    assert not second.begun.is_set()
    outcome = raised.value.outcomes["library"]
    # The first process may be given the second attempt before it has left.
    assert {each.status for each in outcome.attempts} == {OutcomeStatus.LOST}
