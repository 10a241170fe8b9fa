"""``job_request_concurrency`` limits the jobs of every kind of handler of ``on_job_request``."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.peers import llm_services

from pipecat_jobs import BaseWorker, LLMContextWorker, job
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Open:
    """Keeps the jobs that its event handler has begun, until the test sends their responses."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.add_event_handler("on_job_request", self._begin)

    async def _begin(self, _: BaseWorker, message: BusJobRequestMessage) -> None:
        self.begun.put_nowait(message.job_id)

    async def next_begun(self) -> str:
        async with asyncio.timeout(100):
            return await self.begun.get()


class OneByOne(Open, BaseWorker):
    job_request_concurrency = 1


class TwoByTwo(Open, BaseWorker):
    job_request_concurrency = 2


async def request_three(requester: BaseWorker) -> list[str]:
    return [await requester.request_job("worker", job_id=f"j{number}") for number in (1, 2, 3)]


async def test_event_handlers_begin_as_many_jobs_as_job_request_concurrency_allows(
    job_harness: JobHarness,
):
    requester, worker = BaseWorker("requester"), TwoByTwo("worker")
    await job_harness.start(requester, worker)
    ids = await request_three(requester)

    assert [await worker.next_begun(), await worker.next_begun()] == ids[:2]
    await job_harness.settle()
    assert worker.begun.empty()
    await worker.send_job_response(ids[1])
    assert await worker.next_begun() == ids[2]

    for job_id in (ids[0], ids[2]):
        await worker.send_job_response(job_id)


async def test_a_job_that_is_cancelled_while_it_waits_never_begins(job_harness: JobHarness):
    requester, worker = BaseWorker("requester"), OneByOne("worker")
    await job_harness.start(requester, worker)
    first, second, third = await request_three(requester)
    assert await worker.next_begun() == first

    await requester.cancel_job_group(second)
    await worker.send_job_response(first)
    assert await worker.next_begun() == third
    await worker.send_job_response(third)


async def test_a_job_that_is_cancelled_gives_its_slot_to_the_next(job_harness: JobHarness):
    requester, worker = BaseWorker("requester"), OneByOne("worker")
    await job_harness.start(requester, worker)
    first, second, third = await request_three(requester)
    assert await worker.next_begun() == first

    await requester.cancel_job_group(first)

    for job_id in (second, third):
        assert await worker.next_begun() == job_id
        await worker.send_job_response(job_id)


async def test_a_worker_with_an_llm_context_begins_one_at_a_time(job_harness: JobHarness):
    class Thinker(Open, LLMContextWorker):
        pass

    async with llm_services() as new_llm:
        requester, worker = (
            BaseWorker("requester"),
            Thinker("worker", llm=new_llm("http://127.0.0.1:1/v1")),
        )
        await job_harness.start(requester, worker)
        for job_id in await request_three(requester):
            assert await worker.next_begun() == job_id
            await job_harness.settle()
            assert worker.begun.empty()
            await worker.send_job_response(job_id)
        await job_harness.end(worker)


async def test_an_override_and_the_event_handlers_share_a_slot(job_harness: JobHarness):
    class Overriding(OneByOne):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            self.begun.put_nowait(f"override {message.job_id}")

    requester, worker = BaseWorker("requester"), Overriding("worker")
    await job_harness.start(requester, worker)
    for job_id in await request_three(requester):
        both = {await worker.next_begun(), await worker.next_begun()}
        assert both == {job_id, f"override {job_id}"}
        await job_harness.settle()
        assert worker.begun.empty()
        await worker.send_job_response(job_id)


async def test_jobs_that_a_named_handler_takes_are_not_limited(
    job_harness: JobHarness,
):
    class Named(OneByOne):
        @job(name="work")
        async def work(self, message: BusJobRequestMessage) -> None:
            await asyncio.Event().wait()

    requester, worker = BaseWorker("requester"), Named("worker")
    await job_harness.start(requester, worker)
    ids = [await requester.request_job("worker", name="work") for _ in range(3)]

    assert [await worker.next_begun() for _ in ids] == ids
    for job_id in ids:
        await requester.cancel_job_group(job_id)
