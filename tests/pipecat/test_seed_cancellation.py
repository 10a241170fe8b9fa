"""The samples of "Job Coordination" about cancellation, each run as it is written there.

The lines between ``fmt: off`` and ``fmt: on`` are the document's own, line lengths included. The
code around a sample adds its missing parts: the workers, the work, the name of the method.
"""
# ruff: noqa: F841

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from loguru import logger
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
)

from pipecat_jobs import (
    BaseWorker,
    JobCancelledError,
    JobError,
    JobGroupError,
    JobStatus,
    OutcomeStatus,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness
from pipecat_jobs.testing.fixtures import LogRecord

pytestmark = pytest.mark.every_bus


class Working(BaseWorker):
    """Works on each job until it is cancelled."""

    def __init__(self, name: str):
        super().__init__(name)
        self.working = asyncio.Event()
        self.stopped: list[str] = []
        self.cancels: list[BusJobCancelMessage] = []

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        self.working.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped.append(message.job_id)
            raise

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        self.cancels.append(message)


class Failing(BaseWorker):
    """Responds with an error once the test releases it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.may_fail = asyncio.Event()

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await self.may_fail.wait()
        await self.send_job_response(
            message.job_id, {"error": "the source is offline"}, status=JobStatus.ERROR
        )


def has_status(status: JobStatus) -> Callable[[BusMessage], bool]:
    return lambda message: isinstance(message, BusJobResponseMessage) and message.status == status


# Automatic cancellation with context managers


class AutomaticCancellation(BaseWorker):
    """Runs the sample; ``in_block`` stands for its "if this raises"."""

    async def ask(self, in_block: Callable[[], Any] | None = None) -> None:
        data = {"topic": "AI"}
        # fmt: off
        # If an exception or CancelledError is raised inside the block,
        # all agents are cancelled automatically
        async with self.job_group("w1", "w2", payload=data) as jg:
            # ... if this raises, the agents get cancelled
            pass
            # fmt: on
            if in_block is not None:
                await in_block()


async def test_an_exception_in_the_block_cancels_every_worker(job_harness: JobHarness):
    requester, w1, w2 = AutomaticCancellation("requester"), Working("w1"), Working("w2")
    await job_harness.start(requester, w1, w2)

    async def fail_once_both_work() -> None:
        await w1.working.wait()
        await w2.working.wait()
        raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        await requester.ask(fail_once_both_work)

    await job_harness.settle()
    assert len(w1.stopped) == len(w2.stopped) == 1
    assert not requester.job_groups


async def test_a_cancellation_in_the_block_cancels_every_worker(job_harness: JobHarness):
    requester, w1, w2 = AutomaticCancellation("requester"), Working("w1"), Working("w2")
    await job_harness.start(requester, w1, w2)
    asking = asyncio.create_task(requester.ask(asyncio.Event().wait))
    await w1.working.wait()
    await w2.working.wait()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    await job_harness.settle()
    assert len(w1.stopped) == len(w2.stopped) == 1
    assert not requester.job_groups


async def test_a_cancellation_while_the_context_waits_at_its_exit_cancels_every_worker(
    job_harness: JobHarness,
):
    """The form of the sample: an empty block, which waits only at its exit."""
    requester, w1, w2 = AutomaticCancellation("requester"), Working("w1"), Working("w2")
    await job_harness.start(requester, w1, w2)
    asking = asyncio.create_task(requester.ask())
    await w1.working.wait()
    await w2.working.wait()
    await job_harness.settle()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    await job_harness.settle()
    assert len(w1.stopped) == len(w2.stopped) == 1
    assert not requester.job_groups


async def test_a_cancellation_before_a_worker_is_ready_sends_no_request(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, w1 = AutomaticCancellation("requester"), Working("w1")
    await chaos_harness.start(requester, w1)
    asking = asyncio.create_task(requester.ask())
    await chaos_harness.settle()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    await chaos_harness.start(Working("w2"))
    await chaos_harness.settle()
    assert not [each for each in chaos_bus.sent if isinstance(each, BusJobRequestMessage)]


# Worker errors


async def test_a_worker_s_error_cancels_the_rest_and_raises_job_group_error(
    job_harness: JobHarness,
):
    class Requester(BaseWorker):
        async def ask(self) -> JobGroupError | None:
            data = {"topic": "AI"}
            # fmt: off
            try:
                async with self.job_group("w1", "w2", payload=data) as jg:
                    pass
            except JobGroupError as e:
                # An agent errored -- remaining agents were cancelled
                pass
                # fmt: on
                return e
            return None

    requester, w1, w2 = Requester("requester"), Failing("w1"), Working("w2")
    await job_harness.start(requester, w1, w2)
    asking = asyncio.create_task(requester.ask())
    await w2.working.wait()

    w1.may_fail.set()

    error = await asking
    assert isinstance(error, JobGroupError)
    assert "'w1'" in str(error)
    assert "the source is offline" in str(error)
    assert error.outcomes["w1"].status is OutcomeStatus.ERROR
    assert error.outcomes["w2"].status is OutcomeStatus.CANCELLED
    await job_harness.settle()
    assert len(w2.stopped) == 1


# Manual cancellation


class ManualCancellation(BaseWorker):
    """Runs the sample; a wait stands for its ``# ...``."""

    def __init__(self, name: str):
        super().__init__(name)
        self.sent: list[str] = []

    async def ask(self) -> None:
        # fmt: off
        job_ids = []
        try:
            job_ids.append(await self.request_job("w1", payload={"job": 1}))
            job_ids.append(await self.request_job("w2", payload={"job": 2}))
            # ...
            # fmt: on
            self.sent = job_ids
            await asyncio.Event().wait()
            # fmt: off
        except asyncio.CancelledError:
            for jid in job_ids:
                await self.cancel_job_group(jid, reason="tool cancelled")
        # fmt: on


async def test_jobs_requested_without_a_context_are_cancelled_by_hand(job_harness: JobHarness):
    requester, w1, w2 = ManualCancellation("requester"), Working("w1"), Working("w2")
    await job_harness.start(requester, w1, w2)
    asking = asyncio.create_task(requester.ask())
    await w1.working.wait()
    await w2.working.wait()
    await job_harness.settle()
    assert list(requester.job_groups) == requester.sent

    asking.cancel()
    await asking

    await job_harness.settle()
    assert [*w1.stopped, *w2.stopped] == requester.sent
    assert [cancel.reason for cancel in (*w1.cancels, *w2.cancels)] == ["tool cancelled"] * 2
    assert not requester.job_groups


async def test_a_manual_cancellation_reaches_the_asked_workers_while_another_is_not_ready(
    job_harness: JobHarness,
):
    requester, w1 = ManualCancellation("requester"), Working("w1")
    await job_harness.start(requester, w1)
    asking = asyncio.create_task(requester.ask())
    await w1.working.wait()
    await job_harness.settle()

    asking.cancel()
    await asking

    await job_harness.settle()
    assert [cancel.reason for cancel in w1.cancels] == ["tool cancelled"]
    assert len(w1.stopped) == 1
    w2 = Working("w2")
    await job_harness.start(w2)
    await job_harness.settle()
    assert not w2.working.is_set()


async def test_a_wait_for_a_job_cancelled_by_hand_raises_an_error_that_says_so(
    job_harness: JobHarness,
):
    class Requester(BaseWorker):
        async def ask(self) -> None:
            async with self.job("worker", timeout=30):
                pass

    requester, worker = Requester("requester"), Working("worker")
    await job_harness.start(requester, worker)
    asking = asyncio.create_task(requester.ask())
    await worker.working.wait()

    (job_id,) = requester.job_groups
    await requester.cancel_job_group(job_id, reason="changed the subject")

    with pytest.raises(JobCancelledError, match=r"'worker'.*changed the subject") as caught:
        await asking
    assert caught.value.outcomes["worker"].status is OutcomeStatus.CANCELLED
    assert caught.value.outcomes["worker"].reason == "changed the subject"


# Handling cancellation on the agent side


async def test_the_cancelled_hook_fires_and_the_worker_itself_responds_cancelled(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, job_log: list[LogRecord]
):
    # fmt: off
    class MyWorker(BaseWorker):
        async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
            # Optional: clean up resources, stop in-progress work
            logger.info(f"Job {message.job_id} cancelled: {message.reason}")
    # fmt: on

    working = asyncio.Event()

    class Busy(MyWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            working.set()
            await asyncio.Event().wait()

    requester = BaseWorker("requester")
    await chaos_harness.start(requester, Busy("worker"))
    job_id = await requester.request_job("worker")
    await working.wait()

    await requester.cancel_job_group(job_id, reason="no longer needed")

    response = await chaos_bus.wait_for(has_status(JobStatus.CANCELLED))
    assert isinstance(response, BusJobResponseMessage)
    assert (response.source, response.target, response.job_id) == ("worker", "requester", job_id)
    logged = [record.message for record in job_log if record.level == "INFO"]
    assert f"Job {job_id} cancelled: no longer needed" in logged


# Agent shutdown


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_a_worker_that_stops_responds_cancelled_to_each_job_it_holds(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, how: str
):
    class Requester(BaseWorker):
        async def ask(self) -> None:
            # Without a timeout, only the worker's own response can end the job.
            async with self.job("worker", name="work"):
                pass

    class Holding(BaseWorker):
        def __init__(self, name: str):
            super().__init__(name)
            self.both_held = asyncio.Barrier(3)

        @job(name="work")
        async def work(self, message: BusJobRequestMessage) -> None:
            await self.both_held.wait()
            await asyncio.Event().wait()

    requester, worker = Requester("requester"), Holding("worker")
    await chaos_harness.start(requester, worker)
    jobs = [asyncio.create_task(requester.ask()) for _ in range(2)]
    await worker.both_held.wait()

    await (chaos_harness.end(worker) if how == "end" else chaos_harness.cancel(worker))

    for error in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(error, JobCancelledError)
        assert isinstance(error, JobError)
        assert "job 'work' at 'worker' cancelled" in str(error)
        assert error.outcomes["worker"].reason == "worker 'worker' stopped"
    responses = await chaos_bus.wait_for(has_status(JobStatus.CANCELLED), 2)
    assert {response.source for response in responses} == {"worker"}
