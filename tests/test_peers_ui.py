"""Pipecat's ``UIWorker`` with jobs: its cards, its client's cancel, and its own jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from peers import OurPeer, PlainPeer, cancel, llm_services
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.bus.ui.messages import (
    BusUIDataMessage,
    BusUIEventMessage,
    BusUIJobCompletedMessage,
    BusUIJobGroupCompletedMessage,
    BusUIJobGroupStartedMessage,
    BusUIJobUpdateMessage,
)
from pipecat.frames.frames import InterruptionFrame
from pipecat.pipeline.job_context import JobGroupParams
from pipecat.workers.llm import tool
from pipecat.workers.ui import UIWorker

from pipecat_jobs import (
    JobCancelledError,
    JobError,
    JobGroupError,
    JobsMixin,
    JobTimeoutError,
    WorkerLostError,
    WorkerNotReadyError,
)
from pipecat_jobs.testing import ChaosBus, JobHarness, ScriptedLLMServer, Stall, ToolCall

#: Pipecat's constants for these two moved between releases; what is on the bus did not.
SNAPSHOT = "__ui_snapshot"
CANCEL_JOB_GROUP = "__cancel_job_group"


class Mine(JobsMixin, UIWorker):
    @tool
    async def answer(self, params: Any, text: str) -> None:
        """Answer the job.

        Args:
            params: Pipecat's.
            text: The answer.
        """
        await self.respond_to_job(text)
        await params.result_callback(None)


class Reversed(UIWorker, JobsMixin):
    pass


MakeUI = Callable[..., Any]


@pytest.fixture
async def make() -> AsyncIterator[MakeUI]:
    """Makes a UI worker; first in a test's arguments, to close its connections last."""
    async with llm_services() as new_llm:

        def make(worker_class: type = Mine, base_url: str = "http://127.0.0.1:1/v1") -> Any:
            return worker_class("ui", llm=new_llm(base_url))

        yield make


def cards(bus: ChaosBus) -> list[tuple[Any, ...]]:
    """What the client was shown, in order, each event short."""
    shown: list[tuple[Any, ...]] = []
    for message in bus.sent:
        match message:
            case BusUIJobGroupStartedMessage():
                shown.append(("started", *message.workers))
            case BusUIJobUpdateMessage():
                shown.append(("update", message.worker_name, message.data))
            case BusUIJobCompletedMessage():
                shown.append(("completed", message.worker_name, message.status, message.response))
            case BusUIJobGroupCompletedMessage():
                shown.append(("closed",))
    return shown


def card_ids(bus: ChaosBus) -> set[str]:
    return {m.job_id for m in bus.sent if isinstance(m, BusUIDataMessage)}


async def client_sends(worker: Any, event: str, payload: Any) -> None:
    """Send what Pipecat's client-facing worker makes of a client's message."""
    await worker.send_bus_message(
        BusUIEventMessage(source="client", target=None, event_name=event, payload=payload)
    )


# -- cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker_class", [Mine, Reversed])
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


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
async def test_updates_are_shown_between_start_and_end(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, answers: type
):
    ui = make()
    await chaos_harness.start(ui, answers("a"))

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


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
async def test_a_stream_that_ends_is_shown_as_completed(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, answers: type
):
    ui = make()
    await chaos_harness.start(ui, answers("a"))

    async with ui.job("a", name="stream"):
        pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == [
        ("started", "a"),
        ("completed", "a", "completed", {"chunks": 2}),
        ("closed",),
    ]


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
async def test_an_error_is_shown_with_those_it_cut_short(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, answers: type
):
    ui = make()
    await chaos_harness.start(ui, answers("a"), answers("b"))

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
async def test_answers_that_come_at_once_are_each_shown_before_the_card_closes(
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

    caller = asyncio.create_task(call())
    await held.wait(2)
    held.release()
    with pytest.raises(JobGroupError):
        await caller
    await chaos_harness.settle()

    shown = cards(chaos_bus)
    assert shown[0] == ("started", "a", "b")
    assert [card[:2] for card in shown[1:3]] == [("completed", "a"), ("completed", "b")]
    assert shown[3:] == [("closed",)]


async def test_a_group_that_goes_on_past_an_error_closes_once_all_have_ended(
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


CANCELLED_CARD = [("started", "a"), ("completed", "a", "cancelled", None), ("closed",)]


async def test_a_cancelled_group_closes_its_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)
    job_id = await ui.request_job("a", name="wait")
    await answerer.started.get()

    await ui.cancel_job_group(job_id, reason="enough")
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert answerer.cancelled == [job_id]


async def test_cancelling_twice_closes_the_card_once(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)
    job_id = await ui.request_job("a", name="wait")
    await answerer.started.get()

    await asyncio.gather(ui.cancel_job_group(job_id), ui.cancel_job_group(job_id))
    await ui.cancel_job_group(job_id)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
@pytest.mark.parametrize("worker_class", [Mine, Reversed])
async def test_the_client_cancels_a_group(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, answers: type, worker_class: type
):
    ui, answerer = make(worker_class), answers("a")
    await chaos_harness.start(ui, answerer)

    with pytest.raises(JobCancelledError, match="not that one"):
        async with ui.job("a", name="wait") as j:
            await answerer.started.get()
            payload = {"job_id": j.job_id, "reason": "not that one"}
            await client_sends(ui, CANCEL_JOB_GROUP, payload)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert answerer.cancelled == [j.job_id]


async def test_the_client_cannot_cancel_what_was_asked_as_not_cancellable(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)

    async with ui.job("a", name="wait", cancellable=False) as j:
        await answerer.started.get()
        await client_sends(ui, CANCEL_JOB_GROUP, {"job_id": j.job_id})
        await chaos_harness.settle()
        assert answerer.cancelled == []
        assert not await ui.request_cancel_job_group(j.job_id)
        answerer.release.set()
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
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)

    async with ui.job("a", name="wait") as j:
        await answerer.started.get()
        await client_sends(ui, CANCEL_JOB_GROUP, payload)
        await chaos_harness.settle()
        answerer.release.set()

    assert j.response == {"from": "a"}


async def test_a_timeout_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)

    with pytest.raises(JobTimeoutError):
        async with ui.job("a", name="wait", timeout=0.05):
            pass
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


async def test_a_timeout_keeps_what_the_quick_ones_answered(
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


async def test_a_cancelled_caller_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)

    async def call() -> None:
        async with ui.job("a", name="wait"):
            pass

    caller = asyncio.create_task(call())
    job_id = await answerer.started.get()
    await chaos_harness.settle()

    await cancel(caller)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert answerer.cancelled == [job_id]


async def test_an_exception_in_the_callers_body_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)

    with pytest.raises(KeyError):
        async with ui.job("a", name="wait"):
            raise KeyError
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD


async def test_a_lost_worker_closes_the_card(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    ui, answerer = make(), PlainPeer("a")
    await chaos_harness.start(ui, answerer)
    await chaos_harness.end(answerer)

    with pytest.raises(WorkerLostError):
        async with ui.job("a", name="echo"):
            pass
    await chaos_harness.settle()

    started, completed, closed = cards(chaos_bus)
    assert started == ("started", "a")
    assert completed[:3] == ("completed", "a", "error")
    assert closed == ("closed",)


async def test_a_worker_that_never_was_ready_shows_no_card(
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
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)
    job_id = await ui.request_job("a", name="wait")
    await answerer.started.get()

    await chaos_harness.end(ui)
    await chaos_harness.settle()

    assert cards(chaos_bus) == CANCELLED_CARD
    assert answerer.cancelled == [job_id]


async def test_a_caller_cancelled_while_requests_are_sent_leaves_no_open_card(
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

    caller = asyncio.create_task(call())
    await blocked.wait()
    job_id = await first.started.get()

    await cancel(caller)
    await chaos_harness.settle()

    assert cards(chaos_bus) in ([], [("started", "first", "second"), ("closed",)])
    assert first.cancelled == [job_id]


@pytest.mark.parametrize("asks", ["job", "request_job"])
async def test_a_caller_cancelled_while_its_card_is_announced_leaves_nothing_open(
    make: MakeUI, chaos_harness: JobHarness, chaos_bus: ChaosBus, asks: str
):
    ui, answerer = make(), OurPeer("a")
    await chaos_harness.start(ui, answerer)
    blocked = chaos_bus.block_publish(BusUIJobGroupStartedMessage)

    async def call() -> None:
        if asks == "request_job":
            await ui.request_job("a", name="wait")
            return
        async with ui.job("a", name="wait"):
            pass

    caller = asyncio.create_task(call())
    await blocked.wait()
    job_id = await answerer.started.get()

    await cancel(caller)
    await chaos_harness.settle()

    assert answerer.cancelled == [job_id]
    assert not ui.job_groups


def test_the_order_of_the_bases_does_not_matter():
    class Other(JobsMixin, UIWorker):
        pass

    assert Reversed.__mro__[1:] == Other.__mro__[1:]


# -- its own jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
async def test_its_respond_job_answers_what_a_tool_says(make: MakeUI, asks: type):
    asker = asks("asker")
    async with JobHarness(check_watches=False) as harness, ScriptedLLMServer() as llm:
        llm.on("where", ToolCall("answer", {"text": "on the left"}))
        await harness.start(asker, make(base_url=llm.base_url))

        response = await asker.ask("ui", "respond", payload={"query": "where is it"})

    assert response == {"answer": "on the left"}


async def test_its_respond_jobs_run_one_at_a_time(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    asker, ui = OurPeer("asker"), make(base_url=scripted_llm.base_url)
    for word in ("alpha", "beta", "gamma"):
        scripted_llm.on(word, ToolCall("answer", {"text": word.upper()}))
    await job_harness.start(asker, ui)

    answers = await asyncio.gather(
        *(
            asker.ask("ui", "respond", payload={"query": word})
            for word in ("alpha", "beta", "gamma")
        )
    )

    assert answers == [{"answer": "ALPHA"}, {"answer": "BETA"}, {"answer": "GAMMA"}]
    assert ui.current_job is None


async def test_a_cancelled_respond_job_makes_room_for_the_next(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    asker, ui = OurPeer("asker"), make(base_url=scripted_llm.base_url)
    scripted_llm.on("slow", Stall())
    scripted_llm.on("quick", ToolCall("answer", {"text": "done"}))
    await job_harness.start(asker, ui)
    caller = asyncio.create_task(asker.ask("ui", "respond", payload={"query": "slow"}))
    await scripted_llm.wait_for_requests(1)

    await cancel(caller)
    await job_harness.settle()

    assert ui.current_job is None
    assert not ui.active_jobs
    # The stalled turn holds the pipeline; nothing of this package may hold the job.
    await ui.queue_frame(InterruptionFrame())
    response = await asker.ask("ui", "respond", payload={"query": "quick"})
    assert response == {"answer": "done"}


needs_screen = pytest.mark.skipif(
    not hasattr(UIWorker, "snapshot"), reason="this Pipecat's UIWorker has no screen job"
)


@needs_screen
async def test_its_respond_job_answers_with_the_reply_the_model_writes(
    make: MakeUI, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    asker = OurPeer("asker")
    scripted_llm.reply("It is on the left.")
    await job_harness.start(asker, make(base_url=scripted_llm.base_url))

    response = await asker.ask("ui", "respond", payload={"query": "where is it"})

    assert response == {"answer": "It is on the left."}


@needs_screen
async def test_its_screen_job_reads_the_snapshot(make: MakeUI, job_harness: JobHarness):
    asker, ui = OurPeer("asker"), make()
    await job_harness.start(asker, ui)
    page = {
        "ref": "e0",
        "role": "page",
        "children": [{"ref": "e1", "role": "button", "name": "Buy"}],
    }
    await client_sends(ui, SNAPSHOT, {"root": page})
    await job_harness.settle()

    response = await asker.ask("ui", "screen", payload={"action": "list"})

    assert [element["name"] for element in response["elements"]] == ["Buy"]


@needs_screen
async def test_its_screen_job_says_what_it_cannot_do(make: MakeUI, job_harness: JobHarness):
    asker = OurPeer("asker")
    await job_harness.start(asker, make())

    with pytest.raises(JobError) as failed:
        await asker.ask("ui", "screen", payload={"action": "dance", "target": "x"})

    assert failed.value.outcomes["ui"].error is not None
