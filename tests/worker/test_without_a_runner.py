"""A job always ends, also one requested before its worker's runner runs, or while it starts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pipecat.bus import AsyncQueueBus, WorkerBus
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.runner import WorkerRunner
from support.workers import Requester, Responder, cancelled, until

from pipecat_jobs import (
    BaseWorker,
    JobCancelledError,
    JobGroupError,
    WorkerNotAddedError,
    WorkerNotReadyError,
    job,
)

pytestmark = pytest.mark.every_bus

#: Seconds in which even a busy machine does a job.
LONG = 100.0


class HeldBus(AsyncQueueBus):
    """A bus that starts once the test releases it, as a bus with a slow server does."""

    def __init__(self) -> None:
        super().__init__()
        self.starting, self.release = asyncio.Event(), asyncio.Event()

    async def start(self) -> None:
        self.starting.set()
        await self.release.wait()
        await super().start()


@pytest.fixture
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """The uncaught exceptions of callbacks and tasks of the event loop."""
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield errors
    loop.set_exception_handler(None)


@pytest.fixture
async def runner(bus: WorkerBus) -> WorkerRunner:
    return WorkerRunner(bus=bus, handle_sigint=False)


async def ask_one(requester: BaseWorker, **keywords: Any) -> None:
    async with requester.job("responder", name="echo", **keywords):
        pass


async def ask_group(requester: BaseWorker, **keywords: Any) -> None:
    async with requester.job_group("responder", "nowhere", name="echo", **keywords):
        pass


async def ask_and_read(requester: BaseWorker, **keywords: Any) -> None:
    async with requester.job("responder", name="count", **keywords) as j:
        async for _ in j:
            pass


async def ask_and_go_on(requester: BaseWorker, **keywords: Any) -> None:
    await requester.request_job("responder", name="echo", **keywords)


WAYS = [ask_one, ask_group, ask_and_read, ask_and_go_on]
Way = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("way", WAYS)
async def test_deadline_ends_a_job_asked_before_the_runner_runs(
    runner: WorkerRunner, loop_errors: list[dict[str, Any]], way: Way
):
    requester = Requester()
    await runner.add_workers(requester, Responder())
    with pytest.raises(WorkerNotReadyError, match=r"not ready within 0\.01 s"):
        async with asyncio.timeout(LONG):
            await way(requester, timeout=0.01)
    assert not requester.job_groups
    assert loop_errors == []


async def test_deadline_ends_a_job_asked_while_the_bus_starts(loop_errors: list[dict[str, Any]]):
    bus = HeldBus()
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    requester, responder = Requester(), Responder()
    await runner.add_workers(requester, responder)
    running = asyncio.create_task(runner.run(auto_end=False))
    await bus.starting.wait()
    try:
        with pytest.raises(WorkerNotReadyError):
            async with asyncio.timeout(LONG):
                await ask_one(requester, timeout=0.01)
        waits = asyncio.create_task(ask_one(requester, timeout=LONG))
        bus.release.set()
        await waits
        assert len(responder.ran) == 1
    finally:
        bus.release.set()
        await runner.end()
        await running
    assert loop_errors == []


@pytest.mark.parametrize("way", WAYS)
async def test_cancelling_the_requester_before_the_runner_runs_ends_its_job(
    runner: WorkerRunner, way: Way
):
    requester = Requester()
    await runner.add_workers(requester, Responder())
    call_task = asyncio.ensure_future(way(requester))
    await until(lambda: requester.job_groups)
    await cancelled(call_task)
    assert not requester.job_groups


@pytest.mark.parametrize("way", WAYS)
async def test_cancel_job_group_before_the_runner_runs_ends_the_job(
    runner: WorkerRunner, loop_errors: list[dict[str, Any]], way: Way
):
    requester = Requester()
    await runner.add_workers(requester, Responder())
    call_task = asyncio.ensure_future(way(requester, job_id="early"))
    await until(lambda: requester.job_groups)
    await requester.cancel_job_group("early", reason="not wanted")
    with pytest.raises(JobCancelledError, match="not wanted"):
        async with asyncio.timeout(LONG):
            await call_task
    assert loop_errors == []


@pytest.mark.parametrize("way", WAYS)
async def test_stopping_the_worker_before_the_runner_runs_ends_its_jobs(
    runner: WorkerRunner, way: Way
):
    requester = Requester()
    await runner.add_workers(requester, Responder())
    call_task = asyncio.ensure_future(way(requester))
    await until(lambda: requester.job_groups)
    await requester.stop()
    with pytest.raises(JobCancelledError, match="worker 'requester' stopped"):
        async with asyncio.timeout(LONG):
            await call_task


@pytest.mark.parametrize("way", WAYS)
async def test_a_worker_without_a_runner_raises_an_error_that_says_what_to_do(way: Way):
    with pytest.raises(WorkerNotAddedError, match=r"add_workers") as caught:
        await way(Requester(), timeout=LONG)
    assert caught.value.worker == "requester"


class Recorder(Requester):
    """Overrides every hook, so that each of them needs a task."""

    def __init__(self) -> None:
        super().__init__()
        self.overrides: list[str] = []

    async def on_job_response(self, message: Any) -> None:
        self.overrides.append("response")

    async def on_job_completed(self, result: Any) -> None:
        self.overrides.append("completed")

    async def on_job_error(self, message: Any) -> None:
        self.overrides.append("error")


async def ready(runner: WorkerRunner, *workers: BaseWorker) -> WorkerBus:
    """Make workers known and their bus deliver, before the workers are set up."""
    await runner.add_workers(*workers)
    await runner.bus.setup(runner.task_manager)
    await runner.bus.start()
    for worker in workers:
        name = runner.registry.runner_name
        await runner.registry.register(WorkerReadyData(worker_name=worker.name, runner=name))
    return runner.bus


@pytest.mark.not_on("redis", reason="no process offers a worker that no runner has started")
async def test_workers_that_are_not_set_up_ask_and_respond(
    runner: WorkerRunner, loop_errors: list[dict[str, Any]]
):
    """A bus may deliver requests to a process whose workers are about to start."""
    requester, responder = Recorder(), Responder()
    bus = await ready(runner, requester, responder)
    async with asyncio.timeout(LONG):
        async with requester.job("responder", name="echo", payload={"n": 1}, timeout=LONG) as j:
            pass
        assert j.response == {"from": "responder", "payload": {"n": 1}}
        assert requester.overrides == ["response", "completed"]
        with pytest.raises(JobGroupError):
            async with requester.job_group("responder", name="raise", timeout=LONG):
                pass
        assert "error" in requester.overrides
        call_task = asyncio.create_task(requester.ask("responder", "wait", timeout=LONG))
        await responder.started.get()
        await cancelled(call_task)
        await until(lambda: responder.hook_calls)
        assert len(responder.cancelled) == 1
    await bus.stop()
    assert loop_errors == []


async def test_a_task_without_a_manager_logs_its_exception(runner: WorkerRunner, job_log):
    class Broken(Requester):
        async def send_bus_message(self, message: Any) -> None:
            if isinstance(message, BusJobResponseMessage):
                raise ConnectionError("no bus")
            await super().send_bus_message(message)

    broken = Broken()
    await runner.add_workers(broken)
    # No handler has this job: the refusal is sent by a task.
    await broken.on_bus_message(
        BusJobRequestMessage(source="x", target="requester", job_id="1", job_name="unknown")
    )
    await until(lambda: any("ConnectionError" in record.message for record in job_log))


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_jobs_asked_while_and_after_the_runner_stops_end(runner: WorkerRunner, how: str):
    class Late(Responder):
        """A worker whose clean-up code requests another job when its job is cancelled."""

        def __init__(self) -> None:
            super().__init__()
            self.late: list[BaseException | None] = []

        @job(name="late")
        async def ask_at_the_end(self, message: BusJobRequestMessage) -> None:
            self.started.put_nowait(message.job_id)
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    async with self.job("requester", name="echo"):
                        pass
                    self.late.append(None)
                except BaseException as error:
                    self.late.append(error)

    requester, late = Requester(), Late()
    await runner.add_workers(requester, late)
    running = asyncio.create_task(runner.run(auto_end=False))
    call_task = asyncio.create_task(requester.ask("responder", "late"))
    await late.started.get()
    async with asyncio.timeout(LONG):
        await getattr(runner, how)()
        with pytest.raises(JobGroupError):
            await call_task
        await running
        for worker in (requester, late):
            for way in WAYS:
                with pytest.raises(JobCancelledError, match="has stopped"):
                    await way(worker)
    assert isinstance(late.late[0], JobGroupError)


@pytest.mark.not_on("redis", reason="no process offers a worker that no runner has started")
async def test_a_stop_that_is_cancelled_still_ends_the_jobs_of_the_worker(runner: WorkerRunner):
    """The task that stops a worker may be cancelled while it waits for a handler that cleans up."""

    class Slow(Responder):
        job_cancel_grace = LONG
        cleaning = asyncio.Event()

        @job(name="slow")
        async def clean_up_slowly(self, message: BusJobRequestMessage) -> None:
            self.started.put_nowait(message.job_id)
            try:
                await asyncio.Event().wait()
            finally:
                self.cleaning.set()
                await self.release.wait()

    requester, slow = Requester(), Slow()
    bus = await ready(runner, requester, slow)
    asked = asyncio.create_task(requester.ask("responder", "slow"))
    await slow.started.get()
    asks = asyncio.create_task(ask_of(slow))
    await until(lambda: slow.job_groups)
    stopping = asyncio.create_task(slow.stop())
    await slow.cleaning.wait()
    await cancelled(stopping)
    async with asyncio.timeout(LONG):
        with pytest.raises(JobCancelledError, match="worker 'responder' stopped"):
            await asks
        with pytest.raises(JobCancelledError, match="has stopped"):
            await ask_of(slow)
        slow.release.set()
        with pytest.raises(JobGroupError):
            await asked
    await bus.stop()


async def ask_of(worker: BaseWorker) -> None:
    async with worker.job("nowhere"):
        pass
