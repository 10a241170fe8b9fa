"""A worker whose bus refuses its messages, as when the network is down."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pipecat.bus import AsyncQueueBus
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
)
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import BaseWorker, JobError, JobTimeoutError, OutcomeStatus, job
from pipecat_jobs.outcomes import ErrorDetails
from pipecat_jobs.testing import JobHarness


class FailingBus(AsyncQueueBus):
    """A bus that raises for the messages that a test selects."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: dict[type[BusMessage], set[str]] = {}
        """By class of message: to whom they cannot be sent."""
        self.refused = asyncio.Event()
        self.largest = 10_000_000
        """Characters that a response may take."""

    async def publish(self, message: BusMessage) -> None:
        if message.target in self.refuses.get(type(message), ()):
            self.refused.set()
            raise ConnectionError("bus is down")
        if isinstance(message, BusJobResponseMessage) and len(str(message.response)) > self.largest:
            raise ValueError("too large")
        await super().publish(message)


class Single(BaseWorker):
    """Does one job at a time."""

    def __init__(self) -> None:
        super().__init__("single")
        self.started: asyncio.Queue[str] = asyncio.Queue()

    @job(name="respond", max_concurrency=1)
    async def respond(self, message: BusJobRequestMessage) -> dict:
        return {"done": True}

    @job(name="wait", max_concurrency=1)
    async def wait_for_ever(self, message: BusJobRequestMessage) -> dict:
        self.started.put_nowait(message.job_id)
        await asyncio.Event().wait()
        return {}


@pytest.fixture
async def bus() -> FailingBus:
    return FailingBus()


@pytest.fixture
async def harness(bus: FailingBus) -> AsyncIterator[JobHarness]:
    async with JobHarness(bus) as harness:
        yield harness


async def test_a_job_whose_response_the_bus_refuses_is_closed_and_frees_its_slot(
    harness: JobHarness, bus: FailingBus
):
    requester, single = Requester(), Single()
    await harness.start(requester, single)
    bus.refuses = {BusJobResponseMessage: {"requester"}, BusJobCancelMessage: {"single"}}
    with pytest.raises(JobTimeoutError):
        await requester.ask("single", "respond", timeout=0.05)
    await harness.settle()
    assert not single.active_jobs

    bus.refuses = {}
    assert await requester.ask("single", "respond", timeout=5) == {"done": True}


async def test_a_cancel_whose_response_the_bus_refuses_closes_the_job_and_frees_its_slot(
    harness: JobHarness, bus: FailingBus
):
    requester, single = Requester(), Single()
    await harness.start(requester, single)
    bus.refuses = {BusJobResponseMessage: {"requester"}}
    first = asyncio.create_task(requester.ask("single", "wait"))
    await single.started.get()
    await cancelled(first)
    await bus.refused.wait()
    await harness.settle()
    assert not single.active_jobs

    bus.refuses = {}
    second = asyncio.create_task(requester.ask("single", "wait"))
    await asyncio.wait_for(single.started.get(), 5)
    await cancelled(second)


async def test_a_cancel_that_cannot_be_sent_to_one_worker_reaches_the_others(
    harness: JobHarness, bus: FailingBus
):
    requester, first, second = Requester(), Responder("first"), Responder("second")
    await harness.start(requester, first, second)
    bus.refuses = {BusJobCancelMessage: {"first"}}

    async def ask() -> None:
        async with requester.job_group("first", "second", name="wait"):
            pass

    call = asyncio.create_task(ask())
    await first.started.get()
    job_id = await second.started.get()
    await cancelled(call)
    await harness.settle()
    assert second.cancelled == [job_id]
    first.release.set()


async def test_an_error_that_is_too_large_for_the_bus_is_shortened(
    harness: JobHarness, bus: FailingBus
):
    class Wordy(BaseWorker):
        @job(name="fail", max_concurrency=1)
        async def fail(self, message: BusJobRequestMessage) -> dict:
            raise ValueError("no such row: " + "x" * 500)

    requester = Requester()
    bus.largest = 200
    await harness.start(requester, Wordy("wordy"))
    for _ in range(2):
        with pytest.raises(JobError) as caught:
            await requester.ask("wordy", "fail", timeout=5)
        outcome = caught.value.outcomes["wordy"]
        assert outcome.status is OutcomeStatus.ERROR
        assert str(outcome.error) == "the response could not be sent: ValueError"


def test_a_long_error_is_shortened_in_the_middle():
    def fail() -> None:
        raise ValueError("begin" + "x" * 1_000_000 + "end")

    with pytest.raises(ValueError, match="begin") as caught:
        fail()
    details = ErrorDetails.from_exception(caught.value)
    assert details.traceback
    for text, most in ((details.message, 5_000), (details.traceback, 17_000)):
        assert "characters left out" in text
        assert text.strip().endswith("end")
        assert len(text) < most
    assert "in fail" in details.traceback
