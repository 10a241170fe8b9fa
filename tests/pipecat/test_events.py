"""Pipecat's event handlers, as this package calls them: see ``pipecat_jobs/_pipecat/events.py``."""

import asyncio
from contextvars import ContextVar

import pytest
from pipecat.workers.base_worker import BaseWorker as PlainWorker

from pipecat_jobs._pipecat import (
    call_event_handlers,
    has_event_handlers,
    start_event_handlers,
)
from pipecat_jobs._protocol.hooks import JOB_EVENTS
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


async def _handle(*_: object) -> None:
    pass


async def test_has_event_handlers_tells_whether_an_event_has_a_handler():
    worker = PlainWorker("worker")
    assert not has_event_handlers(worker, "on_job_request")

    worker.add_event_handler("on_job_request", _handle)
    assert has_event_handlers(worker, "on_job_request")
    assert not has_event_handlers(worker, "on_job_response")

    worker.remove_event_handler("on_job_request", _handle)
    assert not has_event_handlers(worker, "on_job_request")


def test_has_event_handlers_is_false_for_an_unknown_event():
    assert not has_event_handlers(PlainWorker("worker"), "on_holiday")


async def test_call_event_handlers_calls_each_with_the_worker_and_the_arguments(
    job_harness: JobHarness,
):
    worker, called = PlainWorker("worker"), []
    await job_harness.start(worker)

    async def first(*args: object) -> None:
        called.append(("first", *args))

    def second(*args: object) -> None:
        called.append(("second", *args))

    worker.add_event_handler("on_job_update", first)
    worker.add_event_handler("on_job_update", second)
    await call_event_handlers(worker, "on_job_update", "message")
    await job_harness.settle()

    assert sorted(called) == [("first", worker, "message"), ("second", worker, "message")]


async def test_call_event_handlers_without_one_does_nothing():
    await call_event_handlers(PlainWorker("worker"), "on_job_update", "message")


async def test_call_event_handlers_does_not_wait_for_a_handler(job_harness: JobHarness):
    worker, go_on = PlainWorker("worker"), asyncio.Event()
    await job_harness.start(worker)

    async def slow(*_: object) -> None:
        await go_on.wait()

    worker.add_event_handler("on_job_update", slow)
    await call_event_handlers(worker, "on_job_update", "message")
    go_on.set()


async def test_start_event_handlers_runs_each_in_a_task_in_the_callers_context(
    job_harness: JobHarness,
):
    worker, called = PlainWorker("worker"), []
    await job_harness.start(worker)
    mood: ContextVar[str] = ContextVar("mood")

    async def first(*args: object) -> None:
        called.append((mood.get(), *args))

    def second(*args: object) -> None:
        called.append((mood.get(), *args))

    worker.add_event_handler("on_job_update", first)
    worker.add_event_handler("on_job_update", second)
    mood.set("calm")
    start_event_handlers(worker, "on_job_update", "message")
    assert not called
    await job_harness.settle()

    assert called == [("calm", worker, "message")] * 2


@pytest.mark.parametrize("event", [*JOB_EVENTS, "on_bus_message"])
def test_start_event_handlers_can_start_those_of_every_job_event(event: str):
    worker = PlainWorker("worker")
    assert not worker._event_handlers[event].is_sync
