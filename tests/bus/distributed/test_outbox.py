"""The outbox, and the jobs that a process has open."""

import asyncio

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobUpdateMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs import BusFullError
from pipecat_jobs.bus._distributed.engine import Call, Lane
from pipecat_jobs.bus._distributed.open_jobs import HeldJob, JobKey, OpenJobs
from pipecat_jobs.bus._distributed.outbox import Outbox


def call(lane: Lane = Lane.DATA, *, essential: bool = False) -> Call:
    return Call(lane, "route", lambda _, __: (), essential=essential)


# -- the outbox ----------------------------------------------------------------------------------


async def test_urgent_messages_are_taken_first_and_the_rest_in_order():
    outbox = Outbox(100)
    data, urgent = [call() for _ in range(3)], [call(Lane.URGENT) for _ in range(2)]
    control = call(Lane.CONTROL)
    for each in (*data, *urgent, control):
        outbox.put(each)
    assert await outbox.take(4) == [control, *urgent, data[0]]
    # The outbox returns them again until the server has them.
    assert await outbox.take(4) == [control, *urgent, data[0]]
    outbox.remove_sent([control, urgent[0]])
    assert await outbox.take(4) == [urgent[1], *data]


async def test_each_lane_names_its_stream():
    assert {lane: lane.stream for lane in Lane} == {
        Lane.CONTROL: "u",
        Lane.URGENT: "u",
        Lane.DATA: "d",
    }


async def test_the_outbox_has_a_limit_that_essential_messages_ignore():
    outbox = Outbox(2)
    outbox.put(call())
    outbox.put(call())
    await outbox.take(1)
    with pytest.raises(BusFullError):
        outbox.put(call())
    outbox.put(call(essential=True))
    outbox.remove_sent(outbox.list_tried())
    with pytest.raises(BusFullError):
        outbox.put(call())
    assert len(outbox) == 2


async def test_a_call_can_be_taken_back_until_it_is_tried():
    outbox = Outbox(100)
    first, second = call(), call()
    outbox.put(first)
    outbox.put(second)
    await outbox.take(1)
    assert not outbox.withdraw(first)
    assert outbox.withdraw(second)
    assert not outbox.withdraw(second)
    assert len(outbox) == 1


@pytest.mark.parametrize("way", ["sent", "taken back"])
async def test_an_outbox_is_empty_once_all_is_sent_or_taken_back(way: str):
    outbox = Outbox(100)
    await outbox.wait_until_empty()
    outbox.put(one := call())
    emptied = asyncio.ensure_future(outbox.wait_until_empty())
    await asyncio.sleep(0)
    assert not emptied.done()
    if way == "sent":
        outbox.remove_sent(await outbox.take(1))
    else:
        assert outbox.withdraw(one)
    await emptied
    taking = asyncio.ensure_future(outbox.take(1))
    await asyncio.sleep(0)
    assert not taking.done()
    outbox.put(two := call())
    assert await taking == [two]


# -- open jobs -----------------------------------------------------------------------------------


def test_messages_about_no_job_have_no_key():
    fields = {"source": "b", "status": JobStatus.COMPLETED}
    for message in (
        BusJobResponseMessage(**fields, target=None, job_id="1"),
        BusJobResponseMessage(**fields, target="a", job_id={}),  # type: ignore[arg-type]
        BusJobCancelMessage(source="a", target=None, job_id="1"),
        BusJobRequestMessage(source="a", target="b", job_id="1"),
    ):
        assert JobKey.of(message) is None


def test_both_sides_of_a_job_have_the_same_key():
    key = JobKey("a", "b", "1")
    assert JobKey.of(BusJobCancelMessage(source="a", target="b", job_id="1")) == key
    assert JobKey.of(BusJobUpdateMessage(source="b", target="a", job_id="1")) == key


async def test_a_released_job_stays_held_by_a_later_attempt():
    open_jobs, key = OpenJobs(), JobKey("a", "b", "1")
    first, second = HeldJob(key, "x:1", 1), HeldJob(key, "y:1", 2)
    open_jobs.hold(first)
    open_jobs.hold(second)
    free = asyncio.ensure_future(open_jobs.wait_until_none_held())
    open_jobs.release(first)
    assert open_jobs.find_held(key) is second
    assert (open_jobs.find_held_by_ref("x:1"), open_jobs.find_held_by_ref("y:1")) == (None, second)
    await asyncio.sleep(0)
    assert not free.done()
    open_jobs.release(second)
    assert open_jobs.find_held(key) is None
    await free
