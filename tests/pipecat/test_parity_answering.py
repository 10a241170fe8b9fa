"""The behaviour of a worker that gets requests, the same in Pipecat's workers and ours."""

import asyncio

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
    BusJobUpdateUrgentMessage,
)
from pipecat.pipeline.job_context import JobParams, JobStatus
from pipecat.pipeline.job_decorator import job as pipecat_job
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support import parity
from support.parity import Bench, listen, request

from pipecat_jobs import BaseWorker, JobTimeoutError
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

bench = parity.bench
worker_class = parity.worker_class


# -- requests ------------------------------------------------------------------------------------


async def test_a_request_fires_its_event_and_is_an_active_job(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    got = listen(worker, "on_job_request")
    await bench.add(worker)
    arrived = request(payload={"q": 1})

    await worker.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]
    assert worker.active_jobs == {"j": arrived}


async def test_an_event_handler_may_respond_at_once(bench: Bench, worker_class: type):
    worker = worker_class("worker")

    @worker.event_handler("on_job_request")
    async def respond(worker: PlainWorker, message: BusJobRequestMessage) -> None:
        await worker.send_job_response(message.job_id, {"by": "event"})

    await bench.add(worker)
    await worker.on_bus_message(request(name="anything"))
    sent = await bench.bus.wait_for(BusJobResponseMessage)

    assert (sent.target, sent.job_id, sent.response) == ("requester", "j", {"by": "event"})


async def test_a_request_without_a_handler_stays_open_for_a_later_response(
    bench: Bench, worker_class: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())
    await bench.settle()
    assert bench.bus.sent == []

    await worker.send_job_response("j", {"late": True})

    (sent,) = bench.sent(BusJobResponseMessage)
    assert (sent.status, sent.response) == (JobStatus.COMPLETED, {"late": True})
    assert worker.active_jobs == {}


async def test_a_request_without_a_handler_stays_open_until_its_deadline(job_harness: JobHarness):
    requester, worker = BaseWorker("requester"), BaseWorker("worker")
    await job_harness.start(requester, worker)

    with pytest.raises(JobTimeoutError):
        async with requester.job("worker", timeout=2.0) as j:
            await job_harness.settle()
            assert list(worker.active_jobs) == [j.job_id]


async def test_a_request_without_a_handler_ends_with_a_cancel(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    cancelled = listen(worker, "on_job_cancelled")
    await bench.add(worker)
    await worker.on_bus_message(request())
    cancel = BusJobCancelMessage(source="requester", target="worker", job_id="j", reason="enough")

    await worker.on_bus_message(cancel)
    sent = await bench.bus.wait_for(BusJobResponseMessage)
    await asyncio.sleep(0)

    assert (sent.target, sent.status) == ("requester", JobStatus.CANCELLED)
    assert cancelled == [cancel]
    assert worker.active_jobs == {}


async def test_a_cancelled_handler_has_stopped_before_its_hook_runs(
    bench: Bench, worker_class: type
):
    order: list[str] = []
    started = asyncio.Event()

    class Working(worker_class):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                order.append("handler stopped")

        async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
            assert message.job_id in self.active_jobs
            order.append("hook")

    worker = Working("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())
    await started.wait()

    cancel = BusJobCancelMessage(source="requester", target="worker", job_id="j")
    await worker.on_bus_message(cancel)
    await bench.bus.wait_for(BusJobResponseMessage)

    assert order == ["handler stopped", "hook"]


async def test_the_update_request_event_fires_only_for_an_open_job(
    bench: Bench, worker_class: type
):
    worker = worker_class("worker")
    got = listen(worker, "on_job_update_requested")
    await bench.add(worker)
    await worker.on_bus_message(request())
    wishes = [
        BusJobUpdateRequestMessage(source="requester", target="worker", job_id=job_id)
        for job_id in ("j", "other")
    ]

    for wish in wishes:
        await worker.on_bus_message(wish)
    await asyncio.sleep(0)

    assert got == wishes[:1]


@pytest.mark.parametrize(
    ("method", "message", "field"),
    [
        ("send_job_update", BusJobUpdateMessage, "update"),
        ("send_job_stream_start", BusJobStreamStartMessage, "data"),
        ("send_job_stream_data", BusJobStreamDataMessage, "data"),
        ("send_job_stream_end", BusJobStreamEndMessage, "data"),
        ("send_job_response", BusJobResponseMessage, "response"),
    ],
)
async def test_messages_of_a_job_go_to_its_requester(
    bench: Bench, worker_class: type, method: str, message: type, field: str
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())

    await getattr(worker, method)("j", {"x": 1})

    (sent,) = bench.bus.sent
    assert type(sent) is message
    assert (sent.source, sent.target, sent.job_id) == ("worker", "requester", "j")
    assert getattr(sent, field) == {"x": 1}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("send_job_update", BusJobUpdateUrgentMessage),
        ("send_job_response", BusJobResponseUrgentMessage),
    ],
)
async def test_urgent_messages_are_sent_as_urgent(
    bench: Bench, worker_class: type, method: str, message: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())

    await getattr(worker, method)("j", {"x": 1}, urgent=True)

    assert [type(sent) for sent in bench.bus.sent] == [message]


@pytest.mark.parametrize(
    "method",
    [
        "send_job_response",
        "send_job_update",
        "send_job_stream_start",
        "send_job_stream_data",
        "send_job_stream_end",
    ],
)
@pytest.mark.parametrize("when", ["never asked", "responded"])
async def test_sending_for_a_job_that_is_not_open_is_a_runtime_error(
    bench: Bench, worker_class: type, method: str, when: str
):
    worker = worker_class("worker")
    await bench.add(worker)
    if when == "responded":
        await worker.on_bus_message(request())
        await worker.send_job_response("j")

    with pytest.raises(RuntimeError, match="'j'"):
        await getattr(worker, method)("j")


# -- the end of a worker -------------------------------------------------------------------------


async def test_a_worker_that_stops_responds_to_its_jobs_and_cancels_its_groups(
    bench: Bench, worker_class: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await bench.ready("a")
    await worker.on_bus_message(request())
    asked = await worker.request_job("a")
    group = worker.job_groups[asked]

    await worker.stop()

    (cancelled,) = bench.sent(BusJobCancelMessage)
    assert (cancelled.target, cancelled.job_id) == ("a", asked)
    assert "stopped" in cancelled.reason
    (responded,) = bench.sent(BusJobResponseMessage)
    assert (responded.target, responded.status) == ("requester", JobStatus.CANCELLED)
    assert group.is_done
    assert worker.active_jobs == worker.job_groups == {}


async def test_a_job_between_workers_that_are_not_run_gets_a_response(
    bench: Bench, worker_class: type
):
    class Echo(worker_class):
        @pipecat_job(name="echo")
        async def echo(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, message.payload)

    requester = worker_class("requester")
    await bench.add(requester, Echo("worker"))
    await bench.bus.start()

    async with requester.job("worker", params=JobParams(name="echo", payload={"q": 1})) as j:
        pass

    assert j.response == {"q": 1}
    assert requester.job_groups == {}
