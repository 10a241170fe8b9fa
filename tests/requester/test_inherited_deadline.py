"""A job that a handler requests ends with the deadline of the handler's own job."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder, until

from pipecat_jobs import (
    BaseWorker,
    JobCall,
    JobInterceptor,
    JobTimeoutError,
    WorkerNotReadyError,
    job,
    job_deadline,
    job_headers,
)
from pipecat_jobs.testing import JobHarness

pytestmark = [
    pytest.mark.every_bus,
    pytest.mark.not_on("pubsub", reason="it carries none of our headers"),
]

#: Seconds; longer than any test takes.
LONG = 1000.0


class Middle(BaseWorker):
    """Runs a function of a test as its handler."""

    def __init__(self, work: Callable[[BaseWorker], Awaitable[object]]):
        super().__init__("middle")
        self.work = work

    @job(name="run")
    async def run_work(self, message: BusJobRequestMessage) -> dict:
        return {"result": await self.work(self)}


class Last(Responder):
    """Tells how long a handler has."""

    def __init__(self) -> None:
        super().__init__("last")
        self.times: list[float | None] = []

    @job(name="left")
    async def tell(self, message: BusJobRequestMessage) -> dict:
        self.times.append(job_deadline())
        return {"left": job_deadline(), "sent": job_headers(message).time_left}


async def start(
    harness: JobHarness, work: Callable[[BaseWorker], Awaitable[object]]
) -> tuple[Requester, Last]:
    requester, last = Requester(), Last()
    await harness.start(requester, Middle(work), last)
    return requester, last


async def test_a_job_without_a_timeout_gets_what_is_left_of_its_requesters(
    job_harness: JobHarness,
):
    async def work(middle: BaseWorker) -> Any:
        return await middle.job("last", name="left")

    requester, _ = await start(job_harness, work)
    response = await requester.job("middle", name="run", timeout=LONG)
    left = response["result"]
    assert LONG - 500 < left["left"] <= left["sent"] <= LONG


@pytest.mark.parametrize(("own", "parents"), [(LONG / 2, LONG), (LONG, LONG / 2)])
async def test_the_smaller_of_both_deadlines_counts(
    job_harness: JobHarness, own: float, parents: float
):
    async def work(middle: BaseWorker) -> Any:
        return await middle.job("last", name="left", timeout=own)

    requester, _ = await start(job_harness, work)
    response = await requester.job("middle", name="run", timeout=parents)
    assert 0 < response["result"]["left"] <= LONG / 2


async def test_a_job_that_inherits_a_deadline_raises_when_it_passes(job_harness: JobHarness):
    """The handler resists its cancel, so that the deadline it inherited can be seen."""
    errors: list[Exception] = []

    async def work(middle: BaseWorker) -> None:
        async def one(worker: str) -> None:
            try:
                await middle.job(worker, name="wait", timeout=LONG)
            except JobTimeoutError as error:
                errors.append(error)

        waiting = asyncio.gather(one("last"), one("nobody"))
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await waiting
            raise

    requester, last = await start(job_harness, work)
    with pytest.raises(JobTimeoutError) as own:
        await requester.job("middle", name="run", timeout=0.3)
    assert not own.value.inherited
    await until(lambda: len(errors) == 2)
    await job_harness.settle()
    assert last.cancelled == last.ran
    assert job_harness.left_behind() == []
    assert all(isinstance(error, JobTimeoutError) and error.inherited for error in errors)
    assert [isinstance(error, WorkerNotReadyError) for error in errors].count(True) == 1
    assert all("of its own requester's deadline" in str(error) for error in errors)


async def test_without_a_deadline_anywhere_nothing_is_inherited(job_harness: JobHarness):
    async def work(middle: BaseWorker) -> Any:
        assert job_deadline() is None
        return await middle.job("last", name="left")

    requester, last = await start(job_harness, work)
    response = await requester.job("middle", name="run")
    assert response["result"] == {"left": None, "sent": None}
    assert job_deadline() is None
    assert last.times == [None]


async def test_a_task_that_outlives_its_job_is_not_bound_by_the_old_deadline(
    job_harness: JobHarness,
):
    begun, go_on, tasks = asyncio.Event(), asyncio.Event(), list[asyncio.Task[Any]]()

    async def work(middle: BaseWorker) -> None:
        async def later() -> Any:
            assert job_deadline() is not None
            begun.set()
            await go_on.wait()
            assert job_deadline() is None
            return await middle.job("last", name="left")

        tasks.append(asyncio.create_task(later()))
        await begun.wait()

    requester, _ = await start(job_harness, work)
    await requester.job("middle", name="run", timeout=LONG)
    go_on.set()
    assert (await tasks[0])["left"] is None


async def test_the_event_handlers_of_a_request_inherit_its_deadline(job_harness: JobHarness):
    requester, worker = Requester(), BaseWorker("worker")
    times: list[float | None] = []

    @worker.event_handler("on_job_request")
    async def on_job_request(_: BaseWorker, message: BusJobRequestMessage) -> None:
        times.append(job_deadline())
        await worker.send_job_response(message.job_id, {})

    await job_harness.start(requester, worker)
    await requester.job("worker", timeout=LONG)
    await requester.job("worker")
    assert times[0] is not None
    assert times[1] is None


@pytest.mark.not_on("redis", reason="there a job waits for its slot at the bus")
async def test_time_that_a_job_waits_for_a_slot_is_gone_when_it_begins(job_harness: JobHarness):
    class Slow(BaseWorker):
        def __init__(self) -> None:
            super().__init__("slow")
            self.times: list[tuple[float | None, float | None]] = []
            self.begun, self.release = asyncio.Event(), asyncio.Event()

        @job(name="work", sequential=True)
        async def work(self, message: BusJobRequestMessage) -> dict:
            self.times.append((job_headers(message).time_left, job_deadline()))
            self.begun.set()
            await self.release.wait()
            return {}

    requester, slow = Requester(), Slow()
    await job_harness.start(requester, slow)
    asking = [
        asyncio.ensure_future(requester.job("slow", name="work", timeout=LONG)) for _ in range(2)
    ]
    await slow.begun.wait()
    await until(lambda: len(slow.active_jobs) == 2)
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, passed.set)
    await passed.wait()
    slow.release.set()
    await asyncio.gather(*asking)
    sent, left = slow.times[1]
    assert sent is not None
    assert left is not None
    assert sent - left >= 0.1


async def test_an_interceptor_sees_the_deadline_that_a_call_inherits(job_harness: JobHarness):
    calls: list[JobCall] = []

    class Keep(JobInterceptor):
        async def ask(self, call, proceed):
            calls.append(call)
            await proceed(call)

    async def work(middle: BaseWorker) -> Any:
        middle.add_job_interceptor(Keep())
        return await middle.job("last", name="left")

    requester, _ = await start(job_harness, work)
    await requester.job("middle", name="run", timeout=LONG)
    (call,) = calls
    assert call.timeout is not None
    assert 0 < call.timeout <= LONG
