"""Messages that a worker sends in its clean-up after a cancel reach the requester's hooks."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusJobUpdateMessage
from pipecat.pipeline.job_context import JobError, JobGroupParams, JobParams, JobStatus
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support import parity

from pipecat_jobs import BaseWorker, job
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Cleaner(BaseWorker):
    """Reports progress from its handler's clean-up and from ``on_job_cancelled()``."""

    def __init__(self, name: str = "cleaner"):
        super().__init__(name)
        self.started = asyncio.Event()

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.send_job_update(message.job_id, {"saved": 1})
            await self.send_job_stream_data(message.job_id, {"rest": "of the text"})

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        await self.send_job_update(message.job_id, {"closed": 2})


class Failing(BaseWorker):
    def __init__(self, name: str):
        super().__init__(name)
        self.fails = asyncio.Event()

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> None:
        await self.fails.wait()
        await self.send_job_response(message.job_id, {"error": "no"}, status=JobStatus.FAILED)


class Recorder(BaseWorker):
    """Keeps the messages of its hooks, in order, until the CANCELLED response."""

    def __init__(self, name: str = "requester"):
        super().__init__(name)
        self.received: list[Any] = []
        self.acknowledged = asyncio.Event()

    async def on_job_update(self, message: Any) -> None:
        # Slow hooks must not change the order.
        await asyncio.sleep(0)
        self.received.append(message.update)

    async def on_job_stream_data(self, message: Any) -> None:
        self.received.append(message.data)

    async def on_job_response(self, message: Any) -> None:
        if message.status == JobStatus.CANCELLED:
            self.received.append("cancelled")
            self.acknowledged.set()


ALL = [{"saved": 1}, {"rest": "of the text"}, {"closed": 2}, "cancelled"]


@pytest.mark.parametrize("how", ["cancel_job_group", "leaving the block", "timeout"])
async def test_overrides_get_all_messages_of_the_clean_up_in_order(
    job_harness: JobHarness, how: str
):
    requester, cleaner = Recorder(), Cleaner()
    await job_harness.start(requester, cleaner)

    if how == "cancel_job_group":
        job_id = await requester.request_job("cleaner", params=JobParams(name="work"))
        await cleaner.started.wait()
        await requester.cancel_job_group(job_id)
    elif how == "leaving the block":
        with pytest.raises(KeyError):
            async with requester.job("cleaner", params=JobParams(name="work")):
                await cleaner.started.wait()
                raise KeyError
    else:
        with pytest.raises(JobError, match="timeout"):
            async with requester.job("cleaner", params=JobParams(name="work", timeout=0.3)):
                pass
    async with asyncio.timeout(100):
        await requester.acknowledged.wait()

    assert requester.received == ALL


async def test_hooks_get_the_messages_of_the_other_workers_of_a_failed_group(
    job_harness: JobHarness,
):
    requester, cleaner = Recorder(), Cleaner()
    failing = Failing("failing")
    await job_harness.start(requester, cleaner, failing)
    params = JobGroupParams(name="work", cancel_on_error=True)
    await requester.request_job_group("cleaner", "failing", params=params)
    await cleaner.started.wait()
    failing.fails.set()
    async with asyncio.timeout(100):
        await requester.acknowledged.wait()

    assert requester.received == ALL


async def test_event_handlers_get_the_messages_of_the_clean_up(job_harness: JobHarness):
    requester, cleaner = BaseWorker("requester"), Cleaner()
    updates, responded = parity.listen(requester, "on_job_update"), asyncio.Event()

    @requester.event_handler("on_job_response")
    async def on_job_response(_: PlainWorker, message: Any) -> None:
        responded.set()

    await job_harness.start(requester, cleaner)
    job_id = await requester.request_job("cleaner", params=JobParams(name="work"))
    await cleaner.started.wait()
    await requester.cancel_job_group(job_id)
    async with asyncio.timeout(100):
        await responded.wait()

    assert [message.update for message in updates] == [{"saved": 1}, {"closed": 2}]


async def test_hooks_get_nothing_from_a_worker_that_was_not_asked_or_has_responded(
    job_harness: JobHarness,
):
    requester = Recorder()
    cleaner = Cleaner()
    await job_harness.start(requester, cleaner)
    job_id = await requester.request_job("cleaner", params=JobParams(name="work"))
    await cleaner.started.wait()
    await requester.cancel_job_group(job_id)
    async with asyncio.timeout(100):
        await requester.acknowledged.wait()

    for source in ("unrelated", "cleaner"):
        await requester.on_bus_message(
            BusJobUpdateMessage(
                source=source, target="requester", job_id=job_id, update={"late": True}
            )
        )
    await job_harness.settle()

    assert requester.received == ALL
