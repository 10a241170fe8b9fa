"""``steer()`` where a steer cannot arrive: it is refused at once."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_decorator import job as pipecat_job
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from support.redis.processes import Member, redis_server
from support.workers import Responder

from pipecat_jobs import BaseWorker
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import JobHarness

__all__ = ["redis_server"]

DATA = {"also": "brakes"}


class Plain(PipecatBaseWorker):
    def __init__(self) -> None:
        super().__init__("plain")
        self.update_requests = 0
        self.release = asyncio.Event()

    async def on_job_update_requested(self, message: object) -> None:
        self.update_requests += 1

    @pipecat_job(name="wait")
    async def wait(self, message: BusJobRequestMessage) -> None:
        await self.release.wait()
        await self.send_job_response(message.job_id, {"done": True})


@pytest.mark.every_bus
@pytest.mark.not_on("queue", "routed", "redis", reason="they carry what is attached to a message")
async def test_a_bus_that_drops_what_is_attached_refuses(job_harness: JobHarness):
    owner, responder = BaseWorker("owner"), Responder()
    await job_harness.start(owner, responder)
    job_id = await owner.request_job("responder", name="wait")
    async with asyncio.timeout(100):
        outcome = await owner.steer(job_id, DATA)
    assert outcome.state == "refused"
    assert "PubSubBus drops" in str(outcome.reason)
    assert "RedisStreamsBus" in str(outcome.reason)
    responder.release.set()


@pytest.mark.every_bus
@pytest.mark.not_on("pubsub", reason="the bus is refused first")
async def test_a_plain_worker_of_the_same_process_refuses(job_harness: JobHarness):
    owner, plain = BaseWorker("owner"), Plain()
    await job_harness.start(owner, plain)
    job_id = await owner.request_job("plain", name="wait")
    async with asyncio.timeout(100):
        outcome = await owner.steer(job_id, DATA)
    assert outcome.state == "refused"
    assert "plain Pipecat Plain" in str(outcome.reason)
    assert plain.update_requests == 0
    plain.release.set()


async def test_a_plain_worker_of_another_process_refuses(redis_server: EmbeddedRedis):
    owner, plain = BaseWorker("owner"), Plain()
    async with Member(redis_server.url, owner) as here, Member(redis_server.url, plain):
        await here.wait_until_known("plain")
        async with asyncio.timeout(100), owner.job("plain", name="wait") as j:
            outcome = await owner.steer(j.job_id, DATA)
            plain.release.set()
    assert outcome.state == "refused"
    assert "plain Pipecat Plain" in str(outcome.reason)
    assert plain.update_requests == 0
    assert j.response == {"done": True}
