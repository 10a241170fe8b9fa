"""``ask_requester()`` where no answer can come: it raises at once."""

import asyncio
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobParams
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from support.buses import BusHarness
from support.redis.processes import Member, redis_server

from pipecat_jobs import BaseWorker, JobQuestionError, job
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import JobHarness

__all__ = ["redis_server"]


class Desk(BaseWorker):
    @job(name="ask")
    async def ask(self, message: BusJobRequestMessage) -> dict[str, Any]:
        try:
            return {"answer": await self.ask_requester("Why?")}
        except JobQuestionError as error:
            return {"reason": error.reason}


class Answering(BaseWorker):
    async def on_job_question(self, question: object) -> object:
        return "because"


async def ask(requester: PipecatBaseWorker) -> dict[str, Any]:
    params = JobParams(name="ask", timeout=60)
    async with asyncio.timeout(100), requester.job("desk", params=params) as j:
        pass
    return j.response


@pytest.mark.every_bus
async def test_a_plain_requester_cannot_answer(bus: WorkerBus):
    plain = PipecatBaseWorker("plain")
    # Pipecat's own job() leaves a watch behind.
    async with BusHarness(bus, check_watches=False) as harness:
        await harness.start(plain, Desk("desk"))
        reason = (await ask(plain))["reason"]
    assert reason.startswith("'plain', which asked for the job, cannot answer")


@pytest.mark.every_bus
@pytest.mark.not_on("queue", "routed", "redis", reason="they carry what is attached to a message")
async def test_a_bus_that_drops_what_is_attached_cannot_carry_an_answer(job_harness: JobHarness):
    owner = Answering("owner")
    await job_harness.start(owner, Desk("desk"))
    assert "use RoutedBus or RedisStreamsBus" in (await ask(owner))["reason"]


async def test_requesters_of_other_processes_answer_if_they_can(redis_server: EmbeddedRedis):
    plain, owner = PipecatBaseWorker("plain"), Answering("owner")
    async with (
        Member(redis_server.url, plain, owner) as asking,
        Member(redis_server.url, Desk("desk")),
    ):
        await asking.wait_until_known("desk")
        assert (await ask(plain))["reason"].startswith("'plain', which asked for the job")
        assert await ask(owner) == {"answer": "because"}
