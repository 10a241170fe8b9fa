"""Pipecat's ``BackendLLMWorker`` with jobs: a frontend attaches, sends messages and detaches."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from support.buses import BusHarness
from support.peers import OurPeer, PlainPeer, cancel, llm_services
from support.peers_backend import BackendLLMWorker, Frontend, Mine

from pipecat_jobs import JobCancelledError, JobError, JobsMixin, OutcomeStatus
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, Stall, Text, ToolCall


class MixinFirst(JobsMixin, BackendLLMWorker):
    pass


Backend = tuple[JobHarness, ScriptedLLMServer, Any]


@asynccontextmanager
async def backend(
    bus: WorkerBus, worker_class: type = Mine, tools: list[Callable[..., Any]] | None = None
) -> AsyncIterator[Backend]:
    async with (
        llm_services() as new_llm,
        BusHarness(bus, check_watches=False) as harness,
        ScriptedLLMServer() as llm,
    ):
        context = LLMContext(tools=tools) if tools else None
        worker = worker_class(name="backend", llm=new_llm(llm.base_url), context=context)
        await harness.start(worker)
        yield harness, llm, worker


@pytest.fixture(params=[Mine, MixinFirst])
async def running(bus: WorkerBus, request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with backend(bus, request.param) as running:
        yield running


async def attached(harness: JobHarness) -> Frontend:
    frontend = Frontend(OurPeer("frontend"))
    await harness.start(frontend.worker)
    await frontend.attach()
    return frontend


@pytest.mark.parametrize("worker_class", [Mine, MixinFirst, BackendLLMWorker])
async def test_a_frontend_attaches_asks_and_receives_the_response(
    bus: WorkerBus, worker_class: type
):
    async with backend(bus, worker_class) as (harness, llm, worker):
        frontend = Frontend(OurPeer("frontend"))
        await harness.start(frontend.worker)

        opening = await frontend.attach()
        llm.reply("Looking it up.\n>> It rains.")
        was = await frontend.send("weather?")
        updates = await frontend.until_idle()
        await frontend.detach()

    assert opening == {"type": "attached", "capabilities": worker.capabilities}
    assert was == "idle"
    assert [(update["text"], update["prefers_spoken"]) for update in updates] == [
        ("Looking it up.", False),
        ("It rains.", True),
    ]


async def test_a_plain_frontend_also_gets_a_response(running: Backend):
    harness, llm, _ = running
    frontend = PlainPeer("frontend")
    updates: asyncio.Queue[dict] = asyncio.Queue()

    async def keep(_: Any, message: Any) -> None:
        updates.put_nowait(message.update)

    frontend.add_event_handler("on_job_update", keep)
    await harness.start(frontend)
    llm.reply(">> Yes.")

    call_task = asyncio.create_task(frontend.events("backend", "attach"))
    assert (await updates.get())["type"] == "attached"
    assert await frontend.ask("backend", "message", payload={"request": "really?"}) == {
        "backend": "idle"
    }
    assert (await updates.get())["text"] == "Yes."
    assert await updates.get() == {"type": "idle"}
    await cancel(call_task)


async def test_a_message_while_it_works_joins_the_work(running: Backend):
    harness, llm, _ = running
    frontend = await attached(harness)
    llm.on("second", ">> Both done.")
    llm.on("first", Text(">> First done.", first_token_after=0.05))

    assert await frontend.send("the first") == "idle"
    await llm.wait_for_requests(1)
    assert await frontend.send("the second") == "working"
    said: list[str] = []
    # Pipecat may report idle between the two.
    while len(said) < 2:
        update = await frontend.updates.get()
        said += [update["text"]] if update["type"] == "output" else []

    assert said == ["First done.", "Both done."]
    await frontend.detach()


async def test_tool_calls_are_reported_phase_by_phase(bus: WorkerBus):
    async def get_weather(params: FunctionCallParams, city: str) -> None:
        """Get the weather.

        Args:
            params: Pipecat's.
            city: Where.
        """
        await params.result_callback({"weather": f"rain in {city}"})

    async with backend(bus, tools=[get_weather]) as (harness, llm, _):
        frontend = await attached(harness)
        llm.reply(ToolCall("get_weather", {"city": "Oslo"}))
        llm.reply(">> Rain in Oslo.")

        await frontend.send("weather?")
        updates = await frontend.until_idle()
        await frontend.detach()

    phases = [update["phase"] for update in updates if update["type"] == "tool_call"]
    assert phases == ["started", "in_progress", "result"]
    assert updates[-1]["text"] == "Rain in Oslo."


async def test_detaching_stops_the_model(running: Backend):
    harness, llm, worker = running
    frontend = await attached(harness)
    llm.reply(Text(" ".join(["word"] * 500), pace=0.01))
    await frontend.send("talk")
    (request,) = await llm.wait_for_requests(1)
    await request.wait_token(2)

    await frontend.detach()

    await request.wait_hung_up()
    await harness.settle()
    assert not worker.active_jobs
    assert not worker.working


async def test_cancelling_the_attach_group_stops_the_model(running: Backend):
    harness, llm, worker = running
    frontend = await attached(harness)
    llm.reply(Stall(after="One moment"))
    await frontend.send("talk")
    (request,) = await llm.wait_for_requests(1)
    await request.wait_started()

    await frontend.worker.cancel_job_group(await frontend.job_id, reason="frontend detached")

    await request.wait_hung_up()
    with pytest.raises(JobCancelledError, match="frontend detached"):
        await frontend.ended
    await harness.settle()
    assert not worker.active_jobs


async def test_a_frontend_that_ends_detaches(running: Backend):
    harness, llm, worker = running
    frontend = await attached(harness)
    llm.reply(Stall(after="One moment"))
    await frontend.send("talk")
    (request,) = await llm.wait_for_requests(1)
    await request.wait_started()

    await harness.end(frontend.worker)

    await request.wait_hung_up()
    with pytest.raises(JobCancelledError):
        await frontend.ended
    await harness.settle()
    assert not worker.active_jobs


async def test_a_second_frontend_is_refused_with_the_reason(running: Backend):
    harness, _, _ = running
    frontend = await attached(harness)
    second = OurPeer("second")
    await harness.start(second)

    attaching = second.job("backend", name="attach")
    with pytest.raises(JobError, match="a frontend is already attached") as refused:
        async with attaching:
            pass

    assert refused.value.outcomes["backend"].status is OutcomeStatus.ERROR
    # Pipecat's own session reads the reason there.
    assert attaching.response == {"error": "a frontend is already attached"}
    assert not frontend.ended.done()
    await frontend.detach()


async def test_a_second_frontend_attaches_once_the_first_has_detached(running: Backend):
    harness, llm, _ = running
    first = await attached(harness)
    await first.detach()
    second = Frontend(OurPeer("second"))
    await harness.start(second.worker)

    assert (await second.attach())["type"] == "attached"
    llm.reply(">> Still here.")
    await second.send("hello?")
    assert [update["text"] for update in await second.until_idle()] == ["Still here."]
    await second.detach()


async def test_a_message_without_a_frontend_is_refused_with_the_reason(running: Backend):
    harness, _, _ = running
    requester = OurPeer("requester")
    await harness.start(requester)

    with pytest.raises(JobError, match="no frontend is attached"):
        await requester.ask("backend", "message", payload={"request": "hello?"})


async def test_a_group_opened_without_a_context_gives_its_updates_to_a_queue_set_afterwards(
    running: Backend,
):
    """Pipecat's own session does so."""
    harness, _, _ = running
    requester = OurPeer("requester")
    await harness.start(requester)

    group = await requester.create_job_group_and_request_job(["backend"], name="attach")
    group.event_queue = asyncio.Queue()
    event = await group.event_queue.get()
    await requester.cancel_job_group(group.job_id, reason="frontend detached")

    assert event.data["type"] == "attached"
    assert await group.event_queue.get() is None
    assert "backend" not in group.responses


async def test_a_model_that_fails_is_reported_and_the_attachment_stays(running: Backend):
    harness, llm, _ = running
    frontend = await attached(harness)
    llm.reply(Failure(400, "no such model"))
    llm.reply(">> Better now.")

    await frontend.send("hello?")
    failure = await frontend.updates.get()
    while failure["type"] == "idle":
        failure = await frontend.updates.get()

    assert failure["type"] == "error"
    assert "no such model" in failure["error"]
    assert not frontend.ended.done()
    await frontend.detach()


async def test_a_backend_that_ends_notifies_its_frontend(running: Backend):
    harness, _, worker = running
    frontend = await attached(harness)

    await harness.end(worker)

    with pytest.raises(JobCancelledError, match="stopped"):
        await frontend.ended
