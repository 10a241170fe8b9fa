"""The jobs that a worker has asked for and holds, as ``open_jobs`` lists them."""

import asyncio
import time

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    InvalidJobTypeError,
    OpenJobState,
    OutcomeStatus,
    Retry,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Kitchen(BaseWorker):
    """Cooks until the test releases it."""

    def __init__(self, name: str = "kitchen"):
        super().__init__(name)
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.release = asyncio.Event()

    @job(name="cook", sequential=True)
    async def cook(self, message: BusJobRequestMessage) -> dict[str, bool]:
        await self.send_job_update(message.job_id, {"percent": 40})
        self.begun.put_nowait(message.job_id)
        await self.release.wait()
        return {"ready": True}


class Waiter(BaseWorker):
    """Asks for dishes, and notes what comes back."""

    def __init__(self) -> None:
        super().__init__("waiter")
        self.updated: asyncio.Queue[str] = asyncio.Queue()
        self.responded: asyncio.Queue[str] = asyncio.Queue()

    async def on_job_update(self, message: object) -> None:
        self.updated.put_nowait("update")

    async def on_job_response(self, message: BusJobResponseMessage) -> None:
        self.responded.put_nowait(message.source)


async def test_a_job_is_listed_at_both_workers_with_what_each_knows(job_harness: JobHarness):
    waiter, kitchen = Waiter(), Kitchen()
    await job_harness.start(waiter, kitchen)
    before = time.time()

    job_id = await waiter.request_job(
        "kitchen", name="cook", timeout=600, label="Order 7", metadata={"table": 4}
    )
    await kitchen.begun.get()
    await waiter.updated.get()

    (asked,) = waiter.open_jobs
    assert (asked.id, asked.role, asked.name, asked.requester, asked.worker) == (
        job_id,
        "asked",
        "cook",
        "waiter",
        "kitchen",
    )
    assert asked.state is OpenJobState.SENT
    assert asked.label == asked.title == "Order 7"
    assert asked.metadata == {"table": 4}
    assert asked.last_update == {"percent": 40}
    assert before - 1 < asked.since < time.time() + 1
    assert asked.deadline is not None
    assert abs(asked.deadline - asked.since - 600) < 1
    (held,) = kitchen.open_jobs
    assert (held.id, held.role, held.requester, held.worker) == (
        job_id,
        "held",
        "waiter",
        "kitchen",
    )
    assert held.state is OpenJobState.RUNNING
    assert held.last_update == {"percent": 40}
    assert (held.label, dict(held.metadata)) == (None, {})

    kitchen.release.set()
    await waiter.job_groups[job_id].wait()
    assert waiter.open_jobs == ()
    await job_harness.settle()
    assert kitchen.open_jobs == ()


@pytest.mark.not_on(
    "redis", reason="a job that waits for a slot is in the server, not at the worker"
)
async def test_a_job_that_waits_for_a_slot_is_queued(job_harness: JobHarness):
    waiter, kitchen = Waiter(), Kitchen()
    await job_harness.start(waiter, kitchen)
    first = await waiter.request_job("kitchen", name="cook")
    await kitchen.begun.get()

    second = await waiter.request_job("kitchen", name="cook")
    await job_harness.settle()

    assert {job.id: job.state for job in kitchen.open_jobs} == {
        first: OpenJobState.RUNNING,
        second: OpenJobState.QUEUED,
    }
    kitchen.release.set()


async def test_a_job_with_a_key_is_listed_with_it_at_its_worker(job_harness: JobHarness):
    begun, released = asyncio.Event(), asyncio.Event()

    class Bridge(BaseWorker):
        @job(key="ship")
        async def steer(self, ship: str, course: int) -> None:
            begun.set()
            await released.wait()

    waiter, bridge = Waiter(), Bridge("bridge")
    await job_harness.start(waiter, bridge)
    await waiter.request_job("bridge", Bridge.steer.request(ship="Argo", course=90))
    await begun.wait()

    (held,) = bridge.open_jobs

    assert held.key == "Argo"
    released.set()


async def test_a_job_whose_worker_is_not_ready_is_unready(job_harness: JobHarness):
    waiter = Waiter()
    await job_harness.start(waiter)
    asking = asyncio.create_task(waiter.request_job("kitchen", name="cook"))
    await asyncio.sleep(0)

    (asked,) = waiter.open_jobs

    assert asked.state is OpenJobState.UNREADY
    asking.cancel()
    await asyncio.wait([asking])
    assert waiter.open_jobs == ()


async def test_a_group_is_listed_once_for_each_worker_that_has_not_ended(job_harness: JobHarness):
    waiter, kitchen, bar = Waiter(), Kitchen("kitchen"), Kitchen("bar")
    await job_harness.start(waiter, kitchen, bar)
    await waiter.request_job_group("kitchen", "bar", name="cook", cancel_on_error=False)
    await kitchen.begun.get()
    await bar.begun.get()
    assert [job.worker for job in waiter.open_jobs] == ["kitchen", "bar"]

    bar.release.set()
    await waiter.responded.get()

    assert [job.worker for job in waiter.open_jobs] == ["kitchen"]
    kitchen.release.set()


async def test_a_job_that_waits_for_its_next_attempt_is_retrying(job_harness: JobHarness):
    class Burnt(BaseWorker):
        @job(name="cook")
        async def cook(self, message: BusJobRequestMessage) -> dict:
            raise ValueError("burnt")

    waiter = Waiter()
    await job_harness.start(waiter, Burnt("kitchen"))
    retry = Retry(on={OutcomeStatus.ERROR}, wait_initial=100, wait_max=100)
    job_id = await waiter.request_job("kitchen", name="cook", retry=retry)
    await until(lambda: [job.state for job in waiter.open_jobs] == [OpenJobState.RETRYING])
    await waiter.cancel_job_group(job_id)
    assert waiter.open_jobs == ()


async def test_jobs_are_found_by_their_title_or_the_beginning_of_their_id(job_harness: JobHarness):
    waiter, kitchen = Waiter(), Kitchen()
    await job_harness.start(waiter, kitchen)
    for job_id, label in (("a1-soup", "Soup"), ("a2-fish", None), ("soup-2", None)):
        await waiter.request_job("kitchen", name="cook", job_id=job_id, label=label)

    def found(text: str) -> list[str]:
        return [job.id for job in waiter.open_jobs.find(text)]

    assert found("SOUP ") == ["a1-soup"]
    assert found("a") == ["a1-soup", "a2-fish"]
    assert found("A2") == ["a2-fish"]
    assert found("Cook") == ["a2-fish", "soup-2"]
    assert found("") == []
    assert found("cake") == []
    kitchen.release.set()


async def test_metadata_is_a_dict():
    with pytest.raises(InvalidJobTypeError, match="metadata is 'table 4'; give a dict"):
        Waiter().job("kitchen", metadata="table 4")  # pyright: ignore[reportArgumentType]
