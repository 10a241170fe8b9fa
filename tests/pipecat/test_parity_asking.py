"""The behaviour of a requester that asks and cancels, the same in Pipecat's workers and ours."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage
from pipecat.pipeline.job_context import (
    JobError,
    JobGroup,
    JobGroupError,
    JobGroupParams,
    JobParams,
    JobStatus,
)
from support import parity
from support.parity import Bench, listen, response

from pipecat_jobs import BaseWorker

bench = parity.bench
worker_class = parity.worker_class


# -- requests ------------------------------------------------------------------------------------


async def test_each_worker_is_sent_one_request_with_name_and_payload(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a", "b")

    job_id = await requester.request_job_group(
        "a", "b", params=JobGroupParams(name="look", payload={"q": 1})
    )

    assert [
        (m.source, m.target, m.job_id, m.job_name, m.payload)
        for m in bench.sent(BusJobRequestMessage)
    ] == [("requester", name, job_id, "look", {"q": 1}) for name in ("a", "b")]


async def test_a_request_without_name_and_payload_has_neither(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a")

    job_id = await requester.request_job("a")

    (sent,) = bench.sent(BusJobRequestMessage)
    assert (sent.job_id, sent.job_name, sent.payload) == (job_id, None, None)


async def test_an_open_job_is_in_pipecats_job_groups_until_it_ends(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a", "b")

    params = JobGroupParams(label="Looking", cancellable=False, cancel_on_error=False)
    job_id = await requester.request_job_group("a", "b", params=params)

    group = requester.job_groups[job_id]
    assert isinstance(group, JobGroup)
    assert (group.job_id, group.worker_names) == (job_id, ["a", "b"])
    assert (group.label, group.cancellable, group.cancel_on_error) == ("Looking", False, False)
    assert not group.is_done
    await requester.cancel_job_group(job_id)
    assert group.is_done
    assert requester.job_groups == {}


async def test_a_job_without_timeout_has_no_timeout_task(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a")

    job_id = await requester.request_job("a")

    assert requester.job_groups[job_id].timeout_task is None


async def test_a_timeout_cancels_with_that_reason(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a")

    job_id = await requester.request_job("a", params=JobParams(timeout=0.05))
    cancelled = await bench.bus.wait_for(BusJobCancelMessage)

    assert (cancelled.target, cancelled.job_id, cancelled.reason) == ("a", job_id, "timeout")


async def test_a_response_in_time_cancels_the_timeout(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("quick", "late")

    quick = await requester.request_job("quick", params=JobParams(timeout=0.05))
    await asyncio.sleep(0)  # Pipecat's own timeout task has to begin before it can be cancelled.
    await requester.on_bus_message(response("quick", quick))
    late = await requester.request_job("late", params=JobParams(timeout=0.06))
    await bench.bus.wait_for(lambda m: isinstance(m, BusJobCancelMessage) and m.job_id == late)

    assert [m.job_id for m in bench.sent(BusJobCancelMessage)] == [late]


async def test_a_timeout_raises_an_error_that_says_so(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a")

    with pytest.raises(JobGroupError, match="timeout"):
        async with requester.job_group("a", params=JobGroupParams(timeout=0.02)):
            pass
    with pytest.raises(JobError, match="timeout"):
        async with requester.job("a", params=JobParams(timeout=0.02)):
            pass


async def test_a_worker_not_ready_in_time_raises_an_error_that_says_so(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    await bench.add(requester)

    with pytest.raises(JobGroupError, match="not ready"):
        async with requester.job_group("nobody", params=JobGroupParams(timeout=0.02)):
            pass

    assert bench.sent(BusJobRequestMessage) == []


async def test_no_worker_is_asked_before_all_are_ready(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("early")
    asking = asyncio.create_task(requester.request_job_group("early", "late"))
    await bench.settle()
    assert bench.sent(BusJobRequestMessage) == []

    await bench.ready("late")
    await asking

    assert [m.target for m in bench.sent(BusJobRequestMessage)] == ["early", "late"]


# -- cancelling ----------------------------------------------------------------------------------


async def test_a_body_that_raises_cancels_with_that_reason(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a", "b")

    with pytest.raises(KeyError):
        async with requester.job_group("a", "b") as jg:
            raise KeyError

    assert [(m.target, m.job_id, m.reason) for m in bench.sent(BusJobCancelMessage)] == [
        (name, jg.job_id, "context exited with error") for name in ("a", "b")
    ]


async def test_a_cancel_by_hand_carries_its_reason_to_workers_and_requester(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a", "b")

    with pytest.raises(JobGroupError, match="no longer needed"):
        async with requester.job_group("a", "b") as jg:
            await requester.cancel_job_group(jg.job_id, reason="no longer needed")

    assert [(m.target, m.reason) for m in bench.sent(BusJobCancelMessage)] == [
        ("a", "no longer needed"),
        ("b", "no longer needed"),
    ]


async def test_a_cancel_goes_once_to_each_worker_without_a_response(bench: Bench):
    """Pipecat also sends the cancel to workers that have already responded."""
    requester = BaseWorker("requester")
    await bench.add(requester)
    await bench.ready("a", "b", "c")
    job_id = await requester.request_job_group("a", "b", "c")
    await requester.on_bus_message(response("b", job_id))

    await requester.cancel_job_group(job_id)
    await requester.cancel_job_group(job_id)

    assert [m.target for m in bench.sent(BusJobCancelMessage)] == ["a", "c"]


async def test_a_cancel_of_an_unknown_group_does_nothing(bench: Bench, worker_class: type):
    requester = worker_class("requester")
    await bench.add(requester)

    await requester.cancel_job_group("unknown", reason="why not")

    assert bench.bus.sent == []


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_cancel_requested_from_outside_respects_cancellable(
    bench: Bench, worker_class: type, cancellable: bool
):
    requester = worker_class("requester")
    await bench.add(requester)
    await bench.ready("a")
    job_id = await requester.request_job("a", params=JobParams(cancellable=cancellable))

    assert await requester.request_cancel_job_group(job_id, reason="user") is cancellable
    assert (job_id in requester.job_groups) is not cancellable
    assert await requester.request_cancel_job_group("unknown") is False


async def test_the_cancelled_response_to_a_cancel_reaches_the_hook(
    bench: Bench, worker_class: type
):
    requester = worker_class("requester")
    got = listen(requester, "on_job_response")
    await bench.add(requester)
    await bench.ready("a")
    job_id = await requester.request_job("a")
    await requester.cancel_job_group(job_id)
    cancelled = response("a", job_id, status=JobStatus.CANCELLED)

    await requester.on_bus_message(cancelled)
    await asyncio.sleep(0)

    assert got == [cancelled]
