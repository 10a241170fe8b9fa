"""Which hooks fire and when, the same in Pipecat's workers and ours."""

import asyncio

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateUrgentMessage,
)
from pipecat.pipeline.job_context import (
    JobError,
    JobGroupError,
    JobGroupParams,
    JobGroupResponse,
    JobStatus,
)
from support import parity
from support.parity import Bench, listen, request, response

bench = parity.bench
worker_class = parity.worker_class


async def test_a_group_completes_with_its_last_response(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    completed = listen(requester, "on_job_completed")
    await bench.add(requester)
    await bench.ready("a", "b")
    job_id = await requester.request_job_group("a", "b")

    await requester.on_bus_message(response("a", job_id, response={"x": 1}))
    await asyncio.sleep(0)
    assert completed == []
    await requester.on_bus_message(response("b", job_id))
    await asyncio.sleep(0)

    assert completed == [JobGroupResponse(job_id=job_id, responses={"a": {"x": 1}, "b": {}})]
    assert requester.job_groups == {}


async def test_the_end_of_a_stream_is_a_response(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    completed = listen(requester, "on_job_completed")
    await bench.add(requester)
    await bench.ready("a", "b")
    job_id = await requester.request_job_group("a", "b")

    for name in ("a", "b"):
        end = BusJobStreamEndMessage(
            source=name, target="requester", job_id=job_id, data={"by": name}
        )
        await requester.on_bus_message(end)
        await asyncio.sleep(0)

    assert [result.responses for result in completed] == [{"a": {"by": "a"}, "b": {"by": "b"}}]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("on_job_response", BusJobResponseMessage),
        ("on_job_response", BusJobResponseUrgentMessage),
        ("on_job_update", BusJobUpdateMessage),
        ("on_job_update", BusJobUpdateUrgentMessage),
        ("on_job_stream_start", BusJobStreamStartMessage),
        ("on_job_stream_data", BusJobStreamDataMessage),
        ("on_job_stream_end", BusJobStreamEndMessage),
    ],
)
async def test_an_event_fires_one_turn_after_its_message(
    bench: Bench, worker_class: type, event: str, message: type
):
    requester = worker_class("requester")
    got = listen(requester, event)
    await bench.add(requester)
    await bench.ready("a")
    job_id = await requester.request_job("a")
    fields = {"status": JobStatus.COMPLETED} if event == "on_job_response" else {}
    arrived = message(source="a", target="requester", job_id=job_id, **fields)

    await requester.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]


async def test_on_bus_message_also_fires_for_job_messages(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    got = listen(worker, "on_bus_message")
    await bench.add(worker)
    arrived = request()

    await worker.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]


async def test_messages_for_another_worker_are_ignored(bench: Bench, worker_class: type):
    worker = worker_class("another")
    got = listen(worker, "on_job_request")
    await bench.add(worker)

    await worker.on_bus_message(request())
    await asyncio.sleep(0)

    assert got == []
    assert worker.active_jobs == {}


@pytest.mark.parametrize("status", [JobStatus.ERROR, JobStatus.FAILED])
async def test_an_error_ends_the_group_and_keeps_earlier_responses(
    bench: Bench, worker_class: type, status: JobStatus
):
    requester = worker_class("requester")
    errors, completed = listen(requester, "on_job_error"), listen(requester, "on_job_completed")
    await bench.add(requester)
    await bench.ready("a", "b", "c")
    failed = response("b", "", status=status, response={"why": "no"})

    with pytest.raises(JobGroupError):
        async with requester.job_group("a", "b", "c") as jg:
            failed.job_id = jg.job_id
            await requester.on_bus_message(response("a", jg.job_id, response={"x": 1}))
            await requester.on_bus_message(failed)
    await asyncio.sleep(0)

    assert jg.responses == {"a": {"x": 1}, "b": {"why": "no"}}
    assert errors == [failed]
    assert completed == []
    (to_c,) = [m for m in bench.sent(BusJobCancelMessage) if m.target == "c"]
    assert to_c.reason == "worker 'b' errored"


async def test_an_error_does_not_end_a_group_with_cancel_on_error_off(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    errors, completed = listen(requester, "on_job_error"), listen(requester, "on_job_completed")
    await bench.add(requester)
    await bench.ready("a", "b")

    async with requester.job_group("a", "b", params=JobGroupParams(cancel_on_error=False)) as jg:
        failed = response("a", jg.job_id, status=JobStatus.ERROR, response={"why": "no"})
        await requester.on_bus_message(failed)
        await requester.on_bus_message(response("b", jg.job_id, response={"x": 1}))
    await asyncio.sleep(0)

    assert jg.responses == {"a": {"why": "no"}, "b": {"x": 1}}
    assert errors == []
    assert len(completed) == 1


async def test_hooks_get_every_response_before_the_completion(bench: Bench, worker_class: type):
    """This also holds when an override is slow and the responses arrive together."""
    order: list[str] = []

    class Recording(worker_class):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            await asyncio.sleep(0)
            order.append(message.source)

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            order.append("completed")

    requester = Recording("requester")
    await bench.add(requester)
    await bench.bus.start()
    await bench.ready("a", "b")

    async with requester.job_group("a", "b") as jg:
        await bench.bus.send(response("a", jg.job_id))
        await bench.bus.send(response("b", jg.job_id))
    await bench.settle()

    assert order == ["a", "b", "completed"]


async def test_overrides_see_the_group_while_it_is_still_open(bench: Bench, worker_class: type):
    open_at: dict[str, bool] = {}

    class Recording(worker_class):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            open_at["response"] = message.job_id in self.job_groups

        async def on_job_error(self, message: BusJobResponseMessage) -> None:
            open_at["error"] = message.job_id in self.job_groups

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            open_at["completed"] = result.job_id in self.job_groups

    requester = Recording("requester")
    await bench.add(requester)
    await bench.ready("a")

    async with requester.job("a") as j:
        await requester.on_bus_message(response("a", j.job_id))
    with pytest.raises(JobError):
        async with requester.job("a") as j:
            await requester.on_bus_message(response("a", j.job_id, status=JobStatus.ERROR))

    assert open_at == {"response": True, "error": True, "completed": False}


async def test_hooks_get_the_completion_before_the_requester_goes_on(
    bench: Bench, worker_class: type
):
    order: list[str] = []

    class Recording(worker_class):
        async def on_job_completed(self, result: JobGroupResponse) -> None:
            await asyncio.sleep(0)
            order.append("completed")

    requester = Recording("requester")
    await bench.add(requester)
    await bench.ready("a")

    async with requester.job("a") as j:
        await requester.on_bus_message(response("a", j.job_id))
    order.append("went on")

    assert order == ["completed", "went on"]
