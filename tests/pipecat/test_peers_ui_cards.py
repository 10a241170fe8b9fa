"""The cards of Pipecat's ``UIWorker`` with jobs: the messages that its client gets."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.bus.ui.messages import (
    BusUIDataMessage,
    BusUIJobCompletedMessage,
    BusUIJobGroupStartedMessage,
)
from pipecat.pipeline.job_context import JobGroupParams
from support import peers_ui
from support.peers import OurPeer, PlainPeer
from support.peers_ui import MakeUI, Mine, cards

from pipecat_jobs import JobGroupError, UIWorker
from pipecat_jobs.testing import ChaosBus, JobHarness

make = peers_ui.make


def card_ids(bus: ChaosBus) -> set[str]:
    return {m.job_id for m in bus.sent if isinstance(m, BusUIDataMessage)}


@pytest.mark.parametrize("worker_class", [Mine, UIWorker])
async def test_a_group_that_completes_shows_and_closes_its_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, worker_class: type
):
    ui = make(worker_class)
    await chaos_harness.start(ui, OurPeer("a"), PlainPeer("b"))

    async with ui.job_group("a", "b", name="echo", payload={"q": 1}, label="Looking") as jg:
        pass
    await chaos_harness.settle()

    shown = cards(chaos_bus)
    assert shown[0] == ("started", "a", "b")
    assert sorted(shown[1:3]) == [
        ("completed", "a", "completed", {"from": "a", "payload": {"q": 1}}),
        ("completed", "b", "completed", {"from": "b", "payload": {"q": 1}}),
    ]
    assert shown[3:] == [("closed",)]
    assert card_ids(chaos_bus) == {jg.job_id}
    (started,) = [m for m in chaos_bus.sent if isinstance(m, BusUIJobGroupStartedMessage)]
    assert (started.label, started.cancellable) == ("Looking", True)


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
async def test_updates_are_shown_between_start_and_end(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, responds: type
):
    ui = make()
    await chaos_harness.start(ui, responds("a"))

    async with ui.job("a", name="update"):
        pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "a"),
        ("update", "a", {"step": 1}),
        ("update", "a", {"step": 2}),
        ("completed", "a", "completed", {"steps": 2}),
        ("closed",),
    ]


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
async def test_a_stream_that_ends_is_shown_as_completed(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, responds: type
):
    ui = make()
    await chaos_harness.start(ui, responds("a"))

    async with ui.job("a", name="stream"):
        pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "a"),
        ("completed", "a", "completed", {"chunks": 2}),
        ("closed",),
    ]


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
async def test_an_error_is_shown_with_the_workers_that_it_cancelled(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, responds: type
):
    ui = make()
    await chaos_harness.start(ui, responds("a"), responds("b"))

    with pytest.raises(JobGroupError):
        async with ui.job_group("b", "a", name="fail or wait", payload={"fails": "a"}):
            pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "b", "a"),
        ("completed", "a", "failed", {"error": "no such city"}),
        ("completed", "b", "cancelled", None),
        ("closed",),
    ]


@pytest.mark.parametrize(("first", "second"), [("fail", "fail"), ("fail", "echo")])
async def test_simultaneous_responses_are_each_shown_before_the_card_closes(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, first: str, second: str
):
    class Either(OurPeer):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await (self.fail if message.payload[self.name] == "fail" else self.echo)(message)

    ui = make()
    await chaos_harness.start(ui, Either("a"), Either("b"))
    held = chaos_bus.hold(BusJobResponseMessage)

    async def call() -> None:
        async with ui.job_group("a", "b", payload={"a": first, "b": second}):
            pass

    call_task = asyncio.create_task(call())
    await held.wait(2)
    held.release()
    with pytest.raises(JobGroupError):
        await call_task
    await chaos_harness.settle()

    shown = cards(chaos_bus)
    assert shown[0] == ("started", "a", "b")
    assert [card[:2] for card in shown[1:3]] == [("completed", "a"), ("completed", "b")]
    assert shown[3:] == [("closed",)]


async def test_a_group_that_goes_on_after_an_error_closes_its_card_once_all_have_ended(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, waiting = make(), OurPeer("b")
    await chaos_harness.start(ui, OurPeer("a"), waiting)

    params = JobGroupParams(name="fail or wait", payload={"fails": "a"}, cancel_on_error=False)
    async with ui.job_group("b", "a", params=params):
        await chaos_bus.wait_for(BusUIJobCompletedMessage)
        await waiting.started.get()
        waiting.release.set()
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "b", "a"),
        ("completed", "a", "failed", {"error": "no such city"}),
        ("completed", "b", "completed", {"from": "b"}),
        ("closed",),
    ]


async def test_a_group_that_needs_its_first_response_closes_its_card_with_it(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui = make()
    await chaos_harness.start(ui, OurPeer("a"), OurPeer("b"))

    async with ui.job_group("a", "b", payload={"q": 1}, name="echo", need="first"):
        pass
    await chaos_harness.settle()

    shown = cards(chaos_bus)
    assert shown[0] == ("started", "a", "b")
    assert shown[1][0] == "completed"
    assert shown[-1] == ("closed",)
