"""What stops the turn of ``llm_turn()``, and what is not affected."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.frames.frames import Frame, InterruptionFrame
from support.llm_workers import (
    LONG,
    Debater,
    NewLLM,
    Researcher,
    Talk,
    asked,
    last_asked,
    new_llm,
    start,
)
from support.workers import cancelled

from pipecat_jobs import JobCancelledError, LLMTurnInterruptedError, job
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, Stall, Text, ToolCall

__all__ = ["new_llm"]


# Cancelling the job


async def test_cancelling_the_job_closes_the_connection_and_removes_the_turn_from_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(3)

    await cancelled(asking)

    await request.wait_hung_up()
    assert len(request.sent) < len(LONG.tokens)
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[1]) == ["cats"]


async def test_text_generated_before_the_cancellation_can_be_kept(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask("dogs", keep_unfinished=True))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(3)

    await cancelled(asking)
    await requester.ask("cats")

    question, unfinished, next_question = asked(server.requests[1])
    assert (question, next_question) == ("dogs", "cats")
    assert str(unfinished).startswith("word0")


async def test_cancelling_a_fresh_turn_closes_its_connection_and_no_other(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), Stall())
    server.on(last_asked("cats"), Text("Cats are aloof.", first_token_after=0.2))
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))
    dogs = asyncio.create_task(requester.ask("dogs", fresh=True))
    cats = asyncio.create_task(requester.ask("cats", fresh=True))
    requests = await server.wait_for_requests(2)

    await cancelled(dogs)

    await next(r for r in requests if r.last_user_text == "dogs").wait_hung_up()
    assert await cats == {"text": "Cats are aloof."}


@pytest.mark.parametrize("name", ["wait_here", "wait_behind"])
async def test_cancelling_the_job_cancels_the_functions_its_turn_has_called(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, name: str
):
    server.on(last_asked("dogs"), ToolCall(name))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Researcher(llm=new_llm("You research."))
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask("dogs"))
    await worker.calls.get()

    await cancelled(asking)

    assert await worker.cancelled.get() == name
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]
    assert len(server.requests) == 2


async def test_cancelling_a_job_that_waits_for_its_turn_does_not_stop_the_running_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), Text("Dogs are loyal friends of all.", pace=0.4))
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)
    dogs = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    cats = asyncio.create_task(requester.ask("cats"))
    await job_harness.settle()
    assert len(worker.active_jobs) == 2

    await cancelled(cats)

    assert await dogs == {"text": "Dogs are loyal friends of all."}
    assert server.requests == [request]


@pytest.mark.parametrize("words", range(12))
async def test_a_stale_turn_never_gives_the_response_of_the_next_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, words: int
):
    server.on(last_asked("dogs"), Text(" ".join(["old"] * 10)))
    server.on(last_asked("cats"), "new")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    if words:
        await request.wait_token(min(words, 10))

    asking.cancel()
    response = await requester.ask("cats")
    await asyncio.wait({asking})

    assert response == {"text": "new"}


# While the worker talks to a user


async def test_cancelling_a_job_without_a_turn_does_not_stop_the_user_s_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Host(Debater):
        @job(name="argue")
        async def argue(self, message: BusJobRequestMessage) -> None:
            await asyncio.Event().wait()

    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.05))
    worker = Host(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask("dogs"))
    await talk.say("hello")
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await cancelled(asking)

    assert await talk.said.get() == "Hello to you, my dear user."


async def test_a_job_s_turn_waits_for_the_user_s_and_neither_stops_the_other(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.03))
    server.on(last_asked("dogs"), "Dogs are loyal.")
    worker = Debater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    await talk.say("hello")
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    assert await requester.ask("dogs") == {"text": "Dogs are loyal."}

    assert await talk.said.get() == "Hello to you, my dear user."
    assert asked(server.requests[1]) == ["hello", "Hello to you, my dear user.", "dogs"]


async def test_a_question_of_the_user_during_a_job_s_turn_is_answered_if_the_job_is_cancelled(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("hello"), "Hello!")
    worker = Debater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)
    await talk.say("hello")
    await job_harness.settle()

    await cancelled(asking)

    said = await talk.said.get()
    while said != "Hello!":
        said = await talk.said.get()
    assert request.outcome == "hung_up"


async def test_a_question_of_the_user_is_answered_if_the_turn_stops_after_the_grace_period(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    monkeypatch: pytest.MonkeyPatch,
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("hello"), "Hello!")
    monkeypatch.setattr(Debater, "job_cancel_grace", 0.01)
    worker = Debater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    queue_frame, job_has_ended = worker.llm.queue_frame, asyncio.Event()

    def note_end(_: object, message: BusJobResponseMessage) -> None:
        # The worker sends the CANCELLED response once the grace period is over.
        job_has_ended.set()

    requester.add_event_handler("on_job_response", note_end)
    deliveries: list[asyncio.Task[None]] = []

    async def deliver_late(frame: Frame, *args: Any) -> None:
        await job_has_ended.wait()
        await queue_frame(frame, *args)

    async def queue(frame: Frame, *args: Any) -> None:
        if isinstance(frame, InterruptionFrame):
            deliveries.append(asyncio.create_task(deliver_late(frame, *args)))
        else:
            await queue_frame(frame, *args)

    monkeypatch.setattr(worker.llm, "queue_frame", queue)
    asking = asyncio.create_task(requester.ask("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)
    await talk.say("hello")
    await job_harness.settle()

    await cancelled(asking)

    while await talk.said.get() != "Hello!":
        pass
    assert dogs.outcome == "hung_up"
    await asyncio.gather(*deliveries)


async def test_a_user_s_turn_that_a_late_interruption_stops_is_run_again(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    monkeypatch: pytest.MonkeyPatch,
):
    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.03))
    server.on("dogs", Text("Dogs are loyal.", pace=1.0))
    # The stop of the turn below waits until the other run begins.
    monkeypatch.setattr(Debater, "job_cancel_grace", 60.0)
    worker = Debater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    queue_frame = worker.llm.queue_frame

    async def late(frame: Frame, *args: Any) -> None:
        if isinstance(frame, InterruptionFrame):
            _, hello = await server.wait_for_requests(2)
            await hello.wait_token(1)
        await queue_frame(frame, *args)

    monkeypatch.setattr(worker.llm, "queue_frame", late)
    asking = asyncio.create_task(requester.ask("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)
    await talk.say("hello")
    await job_harness.settle()

    await cancelled(asking)

    while await talk.said.get() != "Hello to you, my dear user.":
        pass
    assert dogs.outcome == "completed"
    assert [request.outcome for request in server.requests[1:]] == ["hung_up", "completed"]


async def test_an_interruption_by_the_user_cancels_the_job_s_turn_of_an_active_worker(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    worker = Debater(llm=new_llm("You talk."), active=True)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await worker.queue_frame(InterruptionFrame())

    with pytest.raises(JobCancelledError, match="interrupted"):
        await asking
    error = worker.failed.get_nowait()
    assert isinstance(error, LLMTurnInterruptedError)
    assert error.text.startswith("word0")
    assert error.worker == "debater"
