"""Cards of Pipecat's ``UIWorker`` whose jobs are cancelled, late or lost: all of them close."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.ui.messages import BusUIJobGroupStartedMessage
from pipecat.pipeline.job_context import JobGroupParams
from support import peers_ui
from support.peers import OurPeer, PlainPeer, cancel
from support.peers_ui import CANCEL_JOB_GROUP, MakeUI, Mine, cards, client_sends

from pipecat_jobs import (
    JobCancelledError,
    JobTimeoutError,
    UIWorker,
    WorkerLostError,
    WorkerNotReadyError,
)
from pipecat_jobs.testing import ChaosBus, JobHarness

make = peers_ui.make

CANCELLED_CARD = [("started", "a"), ("completed", "a", "cancelled", None), ("closed",)]


async def test_a_cancelled_group_closes_its_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)
    job_id = await ui.request_job("a", name="wait")
    await responder.started.get()

    await ui.cancel_job_group(job_id, reason="enough")
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert responder.cancelled == [job_id]


async def test_cancelling_twice_closes_the_card_once(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)
    job_id = await ui.request_job("a", name="wait")
    await responder.started.get()

    await asyncio.gather(ui.cancel_job_group(job_id), ui.cancel_job_group(job_id))
    await ui.cancel_job_group(job_id)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
@pytest.mark.parametrize("worker_class", [Mine, UIWorker])
async def test_the_client_can_cancel_a_group(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, responds: type, worker_class: type
):
    ui, responder = make(worker_class), responds("a")
    await chaos_harness.start(ui, responder)

    with pytest.raises(JobCancelledError, match="not that one"):
        async with ui.job("a", name="wait") as j:
            await responder.started.get()
            payload = {"job_id": j.job_id, "reason": "not that one"}
            await client_sends(ui, CANCEL_JOB_GROUP, payload)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert responder.cancelled == [j.job_id]


async def test_the_client_cannot_cancel_a_group_that_is_not_cancellable(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)

    async with ui.job("a", name="wait", cancellable=False) as j:
        await responder.started.get()
        await client_sends(ui, CANCEL_JOB_GROUP, {"job_id": j.job_id})
        await chaos_harness.settle()
        assert responder.cancelled == []
        assert not await ui.request_cancel_job_group(j.job_id)
        responder.release.set()
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "a"),
        ("completed", "a", "completed", {"from": "a"}),
        ("closed",),
    ]
    (started,) = [m for m in chaos_bus.sent if isinstance(m, BusUIJobGroupStartedMessage)]
    assert started.cancellable is False


@pytest.mark.parametrize("payload", [None, {}, {"job_id": ""}, {"job_id": 3}, {"job_id": "other"}])
async def test_a_cancel_of_the_client_that_names_no_open_group_does_nothing(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, payload: Any
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)

    async with ui.job("a", name="wait") as j:
        await responder.started.get()
        await client_sends(ui, CANCEL_JOB_GROUP, payload)
        await chaos_harness.settle()
        responder.release.set()

    assert j.response == {"from": "a"}


async def test_a_timeout_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)

    with pytest.raises(JobTimeoutError):
        async with ui.job("a", name="wait", timeout=0.05):
            pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


async def test_a_timeout_keeps_the_responses_of_quick_workers(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui = make()
    await chaos_harness.start(ui, OurPeer("a"), OurPeer("b"))

    params = JobGroupParams(
        name="fail or wait", payload={"fails": "a"}, cancel_on_error=False, timeout=0.05
    )
    with pytest.raises(JobTimeoutError):
        async with ui.job_group("a", "b", params=params):
            pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "a", "b"),
        ("completed", "a", "failed", {"error": "no such city"}),
        ("completed", "b", "cancelled", None),
        ("closed",),
    ]


async def test_a_hook_that_overruns_the_deadline_leaves_no_card_open(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    go_on = asyncio.Event()

    class Slow(Mine):
        async def on_job_response(self, message: Any) -> None:
            await super().on_job_response(message)
            await go_on.wait()

    ui = make(Slow)
    await chaos_harness.start(ui, OurPeer("a"))

    async with ui.job("a", name="echo", timeout=0.05):
        pass
    go_on.set()
    await chaos_harness.settle()

    started, completed, closed = cards(chaos_bus)
    assert started == ("started", "a")
    assert completed[:3] == ("completed", "a", "completed")
    assert closed == ("closed",)


async def test_a_cancelled_requester_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)

    async def call() -> None:
        async with ui.job("a", name="wait"):
            pass

    call_task = asyncio.create_task(call())
    job_id = await responder.started.get()
    await chaos_harness.settle()

    await cancel(call_task)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert responder.cancelled == [job_id]


async def test_an_exception_in_the_requesters_body_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)

    with pytest.raises(KeyError):
        async with ui.job("a", name="wait"):
            raise KeyError
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


async def test_a_lost_worker_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), PlainPeer("a")
    await chaos_harness.start(ui, responder)
    await chaos_harness.end(responder)

    with pytest.raises(WorkerLostError):
        async with ui.job("a", name="echo"):
            pass
    await chaos_harness.settle()

    started, completed, closed = cards(chaos_bus)
    assert started == ("started", "a")
    assert completed[:3] == ("completed", "a", "error")
    assert closed == ("closed",)


async def test_a_worker_that_was_never_ready_shows_no_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui = make()
    await chaos_harness.start(ui)

    with pytest.raises(WorkerNotReadyError):
        async with ui.job("nobody", name="echo", timeout=0.05):
            pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == []


async def test_a_ui_worker_that_ends_closes_its_cards(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)
    job_id = await ui.request_job("a", name="wait")
    await responder.started.get()

    await chaos_harness.end(ui)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert responder.cancelled == [job_id]


async def test_a_requester_cancelled_while_requests_are_sent_leaves_no_open_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, first = make(), OurPeer("first")
    await chaos_harness.start(ui, first, OurPeer("second"))
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "second"
    )

    async def call() -> None:
        async with ui.job_group("first", "second", name="wait"):
            pass

    call_task = asyncio.create_task(call())
    await blocked.wait()
    job_id = await first.started.get()

    await cancel(call_task)
    await chaos_harness.settle()

    assert cards(chaos_bus) in ([], [("started", "first", "second"), ("closed",)])
    assert first.cancelled == [job_id]


@pytest.mark.parametrize("asks", ["job", "request_job"])
async def test_a_requester_cancelled_while_its_card_is_announced_leaves_no_open_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, asks: str
):
    ui, responder = make(), OurPeer("a")
    await chaos_harness.start(ui, responder)
    blocked = chaos_bus.block_publish(BusUIJobGroupStartedMessage)

    async def call() -> None:
        if asks == "request_job":
            await ui.request_job("a", name="wait")
            return
        async with ui.job("a", name="wait"):
            pass

    call_task = asyncio.create_task(call())
    await blocked.wait()
    job_id = await responder.started.get()

    await cancel(call_task)
    await chaos_harness.settle()

    assert responder.cancelled == [job_id]
    assert not ui.job_groups
