"""LLM turns that jobs start by queueing a frame, as ``DebateWorker`` of the document does."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMMessagesUpdateFrame,
    LLMRunFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker
from support.llm_workers import (
    LONG,
    NewLLM,
    SeedDebater,
    Talk,
    asked,
    last_asked,
    new_llm,
    start,
)
from support.workers import cancelled

from pipecat_jobs import (
    JobCancelledError,
    JobError,
    JobsMixin,
    LLMContextWorker,
    OutcomeStatus,
    job,
    tool,
)
from pipecat_jobs.testing import (
    Disconnect,
    Failure,
    JobHarness,
    ScriptedLLMServer,
    Stall,
    Text,
    ToolCall,
)

__all__ = ["new_llm"]


# Providers that give no answer


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Failure(400, "the model is out of order"), "the model is out of order"),
        (Disconnect(after="Dogs are"), "gave no answer"),
        ("", "empty answer"),
    ],
    ids=["error", "disconnect", "empty"],
)
async def test_gap_26_a_provider_that_gives_no_answer_fails_the_job_at_once(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    reply: Any,
    cause: str,
):
    server.on(last_asked("dogs"), reply)
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, SeedDebater(llm=new_llm("You argue.")))

    with pytest.raises(JobError, match=cause) as caught:
        await requester.ask_seed("dogs")

    outcome = caught.value.outcomes["debater"]
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.error is not None
    assert outcome.error.type == "LLMTurnError"
    assert await requester.ask_seed("cats") == {"text": "Cats are aloof."}


async def test_jobs_that_wait_behind_one_whose_provider_fails_get_their_own_text(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), Failure(400, "out of order"))
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, SeedDebater(llm=new_llm("You argue.")))

    results = await asyncio.gather(
        *(requester.ask_seed(topic) for topic in ("dogs", "cats", "dogs", "cats")),
        return_exceptions=True,
    )

    assert [isinstance(result, JobError) for result in results] == [True, False, True, False]
    assert results[1] == results[3] == {"text": "Cats are aloof."}


async def test_the_last_event_of_a_failed_turn_is_not_taken_for_the_next_job_s(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), Failure(400, "out of order"))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = SeedDebater(llm=new_llm("You argue."))

    @worker.assistant_aggregator.event_handler("on_before_process_frame")
    async def on_before_process_frame(aggregator: object, frame: Frame) -> None:
        if isinstance(frame, LLMFullResponseEndFrame):
            for _ in range(100):
                await asyncio.sleep(0)

    requester = await start(job_harness, worker)
    dogs = asyncio.create_task(requester.ask_seed("dogs"))
    await server.wait_for_requests(1)

    assert await requester.ask_seed("cats") == {"text": "Cats are aloof."}
    with pytest.raises(JobError, match="out of order"):
        await dogs


async def test_a_failed_turn_that_a_handler_started_at_another_worker_does_not_fail_its_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    other = LLMContextWorker("other", llm=new_llm("You fail."))
    failed = asyncio.Event()
    other.llm.add_event_handler("on_error", lambda *_: failed.set())

    class Delegating(LLMContextWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            topic = {"role": "user", "content": message.payload["topic"]}
            await other.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))
            self.create_task(self._later(message.job_id), "later")

        async def _later(self, job_id: str) -> None:
            await failed.wait()
            await other.flush_pipeline()
            await self.send_job_response(job_id, {"text": "No idea."})

    server.on("You fail.", Failure(400, "out of order"))
    requester = await start(job_harness, other, Delegating("debater", llm=new_llm("You argue.")))

    assert await requester.ask_seed("dogs") == {"text": "No idea."}


async def test_a_handler_that_still_runs_may_respond_after_its_turn_has_failed(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Patient(SeedDebater):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            errors: asyncio.Queue[Frame] = asyncio.Queue()
            self.llm.add_event_handler("on_error", lambda _, error: errors.put_nowait(error))
            await super().on_job_request(message)
            self._current_job_id = None
            await errors.get()
            await self.send_job_response(message.job_id, {"text": "No idea."})

    server.reply(Failure(400, "out of order"))
    requester = await start(job_harness, Patient(llm=new_llm("You argue.")))

    assert await requester.ask_seed("dogs") == {"text": "No idea."}


async def test_a_turn_that_fails_before_the_handler_returns_fails_the_job_when_it_does(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Slow(SeedDebater):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await super().on_job_request(message)
            self._current_job_id = None
            await self.flush_pipeline()

    server.reply(Failure(400, "out of order"))
    requester = await start(job_harness, Slow(llm=new_llm("You argue.")))

    with pytest.raises(JobError, match="out of order"):
        await requester.ask_seed("dogs")


async def test_a_handler_that_starts_a_second_turn_is_not_failed_by_the_first(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Stubborn(SeedDebater):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            errors: asyncio.Queue[Frame] = asyncio.Queue()
            self.llm.add_event_handler("on_error", lambda _, error: errors.put_nowait(error))
            await self.queue_frame(
                LLMMessagesAppendFrame([{"role": "user", "content": "first"}], run_llm=True)
            )
            await errors.get()
            await self.flush_pipeline()
            await super().on_job_request(message)

    server.on(last_asked("first"), Failure(400, "out of order"))
    server.on(last_asked("dogs"), "Dogs are loyal.")
    requester = await start(job_harness, Stubborn(llm=new_llm("You argue.")))

    assert await requester.ask_seed("dogs") == {"text": "Dogs are loyal."}


async def test_a_job_with_two_turns_does_not_fail_when_only_the_first_fails(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Twice(SeedDebater):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            first = [{"role": "user", "content": "first"}]
            await self.queue_frame(LLMMessagesAppendFrame(first, run_llm=True))
            await super().on_job_request(message)
            job_id, self._current_job_id = self._current_job_id, None

            @self.assistant_aggregator.event_handler("on_assistant_turn_stopped")
            async def on_assistant_turn_stopped(aggregator: object, message: Any) -> None:
                if message.content:
                    await self.send_job_response(job_id, {"text": message.content})

    server.reply(Failure(400, "out of order"), "Dogs are loyal.")
    requester = await start(job_harness, Twice(llm=new_llm("You argue.")))

    assert await requester.ask_seed("dogs") == {"text": "Dogs are loyal."}


async def test_a_tool_that_responds_to_the_job_needs_no_text_of_the_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Caller(LLMContextWorker):
        def __init__(self, llm: OpenAILLMService):
            super().__init__("debater", llm=llm)
            self.context.set_tools(self.build_tools())

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            topic = {"role": "user", "content": message.payload["topic"]}
            await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

        @tool
        async def answer(self, params: FunctionCallParams, text: str):
            """Answer.

            Args:
                text: The answer.
            """
            await self.send_job_response(next(iter(self.active_jobs)), {"text": text})
            await params.result_callback(None)

    server.reply(ToolCall("answer", {"text": "Dogs!"}))
    requester = await start(job_harness, Caller(new_llm("You answer.")))

    assert await requester.ask_seed("dogs") == {"text": "Dogs!"}


# Cancelling the job


@pytest.mark.parametrize("active", [False, True])
async def test_gap_25_cancelling_the_job_stops_the_turn_that_it_started(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, active: bool
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, SeedDebater(llm=new_llm("You argue."), active=active))
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(3)

    await cancelled(asking)

    await request.wait_hung_up()
    assert len(request.sent) < len(LONG.tokens)
    assert await requester.ask_seed("cats") == {"text": "Cats are aloof."}


async def test_cancelling_the_job_of_an_active_worker_does_not_stop_the_user_s_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Waiting(SeedDebater):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await asyncio.Event().wait()

    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.05))
    worker = Waiting(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    await talk.say("hello")
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await cancelled(asking)

    assert await talk.said.get() == "Hello to you, my dear user."


async def test_a_job_s_run_that_waits_behind_the_user_s_is_stopped_as_it_begins(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.4))
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("bye"), "Bye!")
    worker = SeedDebater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    await talk.say("hello")
    (hello,) = await server.wait_for_requests(1)
    await hello.wait_token(1)
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    await job_harness.settle()

    await cancelled(asking)

    assert await talk.said.get() == "Hello to you, my dear user."
    await talk.say("bye")
    while await talk.said.get() != "Bye!":
        pass
    assert hello.outcome == "completed"
    # The run may be stopped before its request is sent.
    assert {r.outcome for r in server.requests if asked(r)[-1] == "dogs"} <= {"hung_up"}


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(lambda context: LLMRunFrame(), id="run"),
        pytest.param(lambda context: LLMContextFrame(context), id="context"),
        pytest.param(
            lambda context: LLMMessagesUpdateFrame(
                [{"role": "user", "content": "x"}], run_llm=True
            ),
            id="update",
        ),
    ],
)
async def test_every_frame_that_runs_the_llm_starts_a_turn_of_the_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, frame: Any
):
    class Worker(LLMContextWorker):
        @job(name="argue")
        async def argue(self, message: BusJobRequestMessage) -> None:
            self.context.add_message({"role": "user", "content": message.payload["topic"]})
            await self.queue_frames([frame(self.context)])

    server.on("dogs", LONG)
    server.on("x", LONG)
    requester = await start(job_harness, Worker("debater", llm=new_llm("You argue."), active=True))
    asking = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await cancelled(asking)

    await request.wait_hung_up()


async def test_a_turn_started_by_the_request_s_event_handler_is_the_job_s(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on("dogs", LONG)
    worker = LLMContextWorker("debater", llm=new_llm("You argue."), active=True)

    @worker.event_handler("on_job_request")
    async def on_job_request(_: object, message: BusJobRequestMessage) -> None:
        topic = {"role": "user", "content": message.payload["topic"]}
        await worker.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await cancelled(asking)

    await request.wait_hung_up()


async def test_a_provider_error_fails_a_job_that_only_an_event_handler_takes(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on("dogs", Failure(400, "out of order"))
    worker = LLMContextWorker("debater", llm=new_llm("You argue."))

    @worker.event_handler("on_job_request")
    async def on_job_request(_: object, message: BusJobRequestMessage) -> None:
        topic = {"role": "user", "content": message.payload["topic"]}
        await worker.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

    requester = await start(job_harness, worker)

    with pytest.raises(JobError, match="out of order"):
        await requester.ask_seed("dogs")


@pytest.mark.parametrize(
    "bases",
    [
        pytest.param((PipecatLLMContextWorker, JobsMixin), id="mixin-last"),
        pytest.param((JobsMixin, PipecatLLMContextWorker), id="mixin-first"),
    ],
)
async def test_a_plain_worker_with_the_mixin_stops_its_llm_while_it_is_inactive(
    bases: tuple[type, ...], job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Mixed(*bases):
        def __init__(self, llm: OpenAILLMService):
            super().__init__("debater", llm=llm)

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            topic = {"role": "user", "content": message.payload["topic"]}
            await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

    server.on("dogs", LONG)
    requester = await start(job_harness, Mixed(new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await cancelled(asking)

    await request.wait_hung_up()


# Interruptions from outside


async def test_an_interruption_by_the_user_cancels_the_job_and_does_not_shorten_its_answer(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on("dogs", Stall(after="Dogs are loyal, but"))
    worker = SeedDebater(llm=new_llm("You talk."), active=True)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(4)

    await worker.queue_frame(InterruptionFrame())

    with pytest.raises(JobCancelledError, match="interrupted"):
        await asking


async def test_a_turn_whose_messages_the_job_added_gives_the_response_of_the_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    context = LLMContext([{"role": "user", "content": "We talk about pets."}])
    server.reply("Dogs are loyal.")
    worker = SeedDebater(llm=new_llm("You argue."), context=context)
    requester = await start(job_harness, worker)

    assert await requester.ask_seed("dogs") == {"text": "Dogs are loyal."}
    assert asked(server.requests[0]) == ["We talk about pets.", "dogs"]
