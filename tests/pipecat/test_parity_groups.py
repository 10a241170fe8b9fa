"""Groups that a bot builds and puts into ``job_groups`` itself, in Pipecat's workers and ours."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobStreamEndMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
)
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupError, JobGroupEvent, JobGroupResponse, JobStatus
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support import parity
from support.parity import Bench, listen, response

from pipecat_jobs import BaseWorker, JobCancelledError, JobGroup, JobsMixin, OutcomeStatus

bench = parity.bench


@pytest.fixture(
    params=[(PlainWorker, PipecatJobGroup), (BaseWorker, PipecatJobGroup), (BaseWorker, JobGroup)],
    ids=["pipecat", "ours-with-pipecats-group", "ours"],
)
def classes(request: pytest.FixtureRequest) -> tuple[type[PlainWorker], type[PipecatJobGroup]]:
    return request.param


@pytest.fixture
def worker_class(classes: Any) -> Any:
    return classes[0]


@pytest.fixture
def group_class(classes: Any) -> Any:
    return classes[1]


async def add(bench: Bench, requester: PlainWorker, group: PipecatJobGroup) -> None:
    """Set a worker up and put a group into its ``job_groups``, as a bot does."""
    await bench.add(requester)
    requester.job_groups[group.job_id] = group


async def end_of(group: PipecatJobGroup) -> None:
    async with asyncio.timeout(100):
        await group.wait()


def update(source: str, job_id: str, **data: Any) -> BusJobUpdateMessage:
    return BusJobUpdateMessage(source=source, target="requester", job_id=job_id, update=data)


def test_a_group_builds_from_pipecats_arguments_outside_of_a_loop():
    for group_class in (PipecatJobGroup, JobGroup):
        group = group_class(job_id="j", worker_names={"a"}, cancel_on_error=False, label="Look")
        assert (group.job_id, group.cancel_on_error, group.label) == ("j", False, "Look")
        assert (group.responses, group.terminated, group.timeout_task) == ({}, set(), None)
        assert group.cancellable
        assert group.event_queue is None
        assert not group.is_done
        assert group.worker_names & {"a", "b"} == {"a"}
        assert group_class("j", ["a"]).worker_names == ["a"]


async def test_responses_complete_a_group(bench: Bench, worker_class: Any, group_class: Any):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names={"a", "b"})
    responses, completed = (
        listen(requester, "on_job_response"),
        listen(requester, "on_job_completed"),
    )
    await add(bench, requester, group)

    await requester.on_bus_message(response("a", "j", response={"x": 1}))
    await asyncio.sleep(0)
    assert completed == []
    assert group.terminated == {"a"}
    assert not group.is_done
    end = BusJobStreamEndMessage(source="b", target="requester", job_id="j", data={"y": 2})
    await requester.on_bus_message(end)
    await end_of(group)
    await asyncio.sleep(0)

    both = {"a": {"x": 1}, "b": {"y": 2}}
    assert group.responses == both
    assert completed == [JobGroupResponse(job_id="j", responses=both)]
    assert [message.source for message in responses] == ["a"]
    assert requester.job_groups == {}


@pytest.mark.parametrize("status", [JobStatus.ERROR, JobStatus.FAILED])
async def test_an_error_cancels_the_others(
    bench: Bench, worker_class: Any, group_class: Any, status: JobStatus
):
    requester = worker_class("requester")
    group = group_class(job_id="j", worker_names=["a", "b"], cancel_on_error=True)
    errors, completed = listen(requester, "on_job_error"), listen(requester, "on_job_completed")
    await add(bench, requester, group)
    failed = response("a", "j", status=status, response={"error": "no such book"})

    await requester.on_bus_message(failed)
    with pytest.raises(JobGroupError, match=r"worker 'a' (failed|errored)"):
        await end_of(group)
    await asyncio.sleep(0)

    assert errors == [failed]
    assert completed == []
    assert group.responses == {"a": {"error": "no such book"}}
    assert [m.reason for m in bench.sent(BusJobCancelMessage) if m.target == "b"] == [
        "worker 'a' errored"
    ]
    assert requester.job_groups == {}


async def test_an_error_is_a_response_when_the_group_goes_on_after_errors(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester = worker_class("requester")
    group = group_class(job_id="j", worker_names=["a", "b"], cancel_on_error=False)
    await add(bench, requester, group)

    await requester.on_bus_message(
        response("a", "j", status=JobStatus.ERROR, response={"error": "no"})
    )
    await requester.on_bus_message(response("b", "j", response={"x": 1}))
    await end_of(group)

    assert group.responses == {"a": {"error": "no"}, "b": {"x": 1}}
    assert bench.sent(BusJobCancelMessage) == []


async def test_updates_reach_the_hook_and_the_event_queue(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester, events = worker_class("requester"), asyncio.Queue[Any]()
    group = group_class(job_id="j", worker_names=["a"], event_queue=events)
    received = listen(requester, "on_job_update")
    await add(bench, requester, group)
    half = update("a", "j", done=0.5)

    await requester.on_bus_message(half)
    await requester.on_bus_message(response("a", "j"))
    await end_of(group)
    await asyncio.sleep(0)

    assert received == [half]
    assert events.get_nowait() == JobGroupEvent(JobGroupEvent.UPDATE, "a", {"done": 0.5})
    assert events.get_nowait() is None


async def test_overrides_are_called_for_a_group(bench: Bench, worker_class: Any, group_class: Any):
    class Recording(worker_class):
        def __init__(self, name: str):
            super().__init__(name)
            self.received: list[str] = []

        async def on_job_response(self, message: Any) -> None:
            self.received.append("response")

        async def on_job_update(self, message: Any) -> None:
            self.received.append("update")

        async def on_job_completed(self, result: Any) -> None:
            self.received.append("completed")

    requester, group = Recording("requester"), group_class(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.on_bus_message(update("a", "j"))
    await requester.on_bus_message(response("a", "j"))
    await end_of(group)

    assert requester.received == ["update", "response", "completed"]


async def test_a_cancel_reaches_the_workers_and_fails_the_group(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names={"a"})
    await add(bench, requester, group)

    await requester.cancel_job_group("j", reason="no longer needed")

    with pytest.raises(JobGroupError, match="no longer needed"):
        await end_of(group)
    assert [(m.target, m.reason) for m in bench.sent(BusJobCancelMessage)] == [
        ("a", "no longer needed")
    ]
    assert requester.job_groups == {}


async def test_failing_a_group_by_hand_wakes_its_waiters(group_class: Any):
    group = group_class(job_id="j", worker_names={"a"})
    group.fail("the line is dead")
    with pytest.raises(JobGroupError, match="the line is dead"):
        await end_of(group)
    assert group.is_done


@pytest.mark.parametrize("how", ["response", "cancel"])
async def test_a_timeout_task_ends_with_its_group(
    bench: Bench, worker_class: Any, group_class: Any, how: str
):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names=["a"])
    await add(bench, requester, group)
    group.timeout_task = requester.create_task(asyncio.sleep(1000), "timeout")
    await asyncio.sleep(0)

    if how == "response":
        await requester.on_bus_message(response("a", "j"))
    else:
        await requester.cancel_job_group("j")
    await bench.settle()

    assert group.timeout_task.done()


async def test_a_timeout_task_may_cancel_its_group(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names=["a"])
    await add(bench, requester, group)
    went_on = asyncio.Event()

    async def cancel() -> None:
        await requester.cancel_job_group("j", reason="timeout")
        await asyncio.sleep(0)
        went_on.set()

    group.timeout_task = requester.create_task(cancel(), "timeout")

    with pytest.raises(JobGroupError, match="timeout"):
        await end_of(group)
    async with asyncio.timeout(100):
        await went_on.wait()


async def test_the_workers_of_a_group_may_be_asked_for_an_update(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.request_job_update("j", "a")

    assert [m.target for m in bench.sent(BusJobUpdateRequestMessage)] == ["a"]


async def test_a_requester_that_stops_fails_its_group(
    bench: Bench, worker_class: Any, group_class: Any
):
    requester, group = worker_class("requester"), group_class(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.stop()

    with pytest.raises(JobGroupError, match="stopped"):
        await end_of(group)


async def test_a_request_handled_by_the_worker_itself_is_not_taken_for_a_response(
    bench: Bench, worker_class: Any, group_class: Any
):
    """A worker may ask itself: the id is then a job of both halves."""
    requester, group = worker_class("worker"), group_class(job_id="j", worker_names=["worker"])
    requests = listen(requester, "on_job_request")
    await add(bench, requester, group)

    await requester.on_bus_message(parity.request("j"))
    await asyncio.sleep(0)

    assert [message.job_id for message in requests] == ["j"]
    assert list(requester.active_jobs) == ["j"]


# -- additions of our own group ------------------------------------------------------------------


async def test_our_group_keeps_outcomes(bench: Bench):
    requester = BaseWorker("requester")
    group = JobGroup(job_id="j", worker_names=["a", "b"], cancel_on_error=False)
    await add(bench, requester, group)

    await requester.on_bus_message(response("a", "j", response={"x": 1}))
    assert group.pending == ["b"]
    await requester.on_bus_message(
        response("b", "j", status=JobStatus.FAILED, response={"error": "no"})
    )
    await end_of(group)

    assert {name: outcome.status for name, outcome in group.outcomes.items()} == {
        "a": OutcomeStatus.COMPLETED,
        "b": OutcomeStatus.FAILED,
    }


async def test_our_group_raises_our_error_when_it_is_cancelled(bench: Bench):
    requester, group = BaseWorker("requester"), JobGroup(job_id="j", worker_names=["a"])
    await add(bench, requester, group)
    await requester.cancel_job_group("j")
    with pytest.raises(JobCancelledError) as raised:
        await end_of(group)
    assert raised.value.job_id == "j"


async def test_a_hook_that_raises_does_not_keep_our_group_from_ending(bench: Bench):
    class Raising(BaseWorker):
        async def on_job_response(self, message: Any) -> None:
            raise ValueError("broken hook")

    requester, group = Raising("requester"), JobGroup(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.on_bus_message(response("a", "j", response={"x": 1}))
    await end_of(group)

    assert group.responses == {"a": {"x": 1}}


async def test_a_hook_that_raises_for_pipecats_group_does_not_reach_the_bus(bench: Bench):
    class Raising(BaseWorker):
        async def on_job_update(self, message: Any) -> None:
            raise ValueError("broken hook")

    requester, group = Raising("requester"), PipecatJobGroup(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.on_bus_message(update("a", "j"))
    await requester.on_bus_message(response("a", "j", response={"x": 1}))
    await end_of(group)

    assert group.responses == {"a": {"x": 1}}


async def test_a_malformed_response_to_pipecats_group_is_dropped(bench: Bench):
    requester, group = BaseWorker("requester"), PipecatJobGroup(job_id="j", worker_names=["a"])
    await add(bench, requester, group)

    await requester.on_bus_message(response("a", "j", response="text"))

    assert group.responses == {}
    assert not group.is_done


async def test_a_lost_worker_ends_our_group(bench: Bench):
    requester, group = BaseWorker("requester"), JobGroup(job_id="j", worker_names=["a"])
    assert isinstance(requester, JobsMixin)
    await add(bench, requester, group)
    await requester.worker_lost("a", reason="the host is gone")
    with pytest.raises(JobGroupError, match="the host is gone"):
        await end_of(group)
