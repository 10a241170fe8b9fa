"""``llm_turn()``: the text of an LLM is the response of a job."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
)
from pipecat.services.llm_service import FunctionCallParams
from support.llm_workers import LONG, Debater, NewLLM, Researcher, asked, last_asked, new_llm, start
from support.workers import cancelled

from pipecat_jobs import (
    InvalidJobError,
    InvalidJobTypeError,
    JobError,
    LLMTurnError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
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
    ToolCalls,
)

__all__ = ["new_llm"]


# Results


async def test_the_text_of_the_turn_is_the_response_of_the_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    assert await requester.ask("dogs") == {"text": "Dogs are loyal."}
    assert server.requests[0].system == "You argue."
    assert asked(server.requests[0]) == ["dogs"]


async def test_a_turn_has_the_earlier_turns_in_its_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.", "Cats are not.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    await requester.ask("dogs")
    await requester.ask("and cats?")

    assert asked(server.requests[1]) == ["dogs", "Dogs are loyal.", "and cats?"]


async def test_context_messages_are_sent_as_they_are(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Done.")
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Go"}]
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    await requester.ask(messages)

    assert [m for m in server.requests[0].messages if m["role"] != "system"] == messages


async def test_jobs_at_once_take_turns_and_each_gets_its_own_text(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    topics = ["dogs", "cats", "fish"]
    for topic in topics:
        server.on(last_asked(topic), Text(f"All about {topic}.", pace=0.01))
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    responses = await asyncio.gather(*(requester.ask(topic) for topic in topics))

    assert responses == [{"text": f"All about {topic}."} for topic in topics]
    assert [asked(request)[-1] for request in server.requests] == topics
    for earlier, later in zip(server.requests, server.requests[1:], strict=False):
        assert earlier.ended_at <= later.arrived_at


async def test_a_turn_with_tool_calls_returns_the_answer_after_them(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(
        ToolCalls(ToolCall("look_up", {"word": "dog"}), text="Let me see."),
        ToolCalls(ToolCall("look_up", {"word": "cat"}), ToolCall("look_up", {"word": "fish"})),
        "They are animals.",
    )
    requester = await start(job_harness, Researcher(llm=new_llm("You research.")))

    assert await requester.ask("dogs") == {"text": "They are animals."}
    assert len(server.requests) == 3
    assert sorted(server.requests[0].tools) == ["look_up", "wait_behind", "wait_here"]
    assert server.requests[2].mentions("fish in the book")


async def test_the_tools_of_the_context_are_offered_to_the_llm(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Hm.")
    worker = Researcher(llm=new_llm("You research."))
    worker.context.set_tools([worker.look_up])
    requester = await start(job_harness, worker)

    await requester.ask("dogs")

    assert server.requests[0].tools == ["look_up"]


async def test_the_next_turn_waits_while_the_first_waits_for_a_tool(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), ToolCall("wait_here"))
    server.on(last_asked("cats"), "Cats are aloof.")
    server.on("waited", "Dogs are loyal.")
    worker = Researcher(llm=new_llm("You research."))
    requester = await start(job_harness, worker)

    dogs = asyncio.create_task(requester.ask("dogs"))
    await worker.calls.get()
    cats = asyncio.create_task(requester.ask("cats"))
    await job_harness.settle()
    assert len(server.requests) == 1
    worker.release.set()

    assert await dogs == {"text": "Dogs are loyal."}
    assert await cats == {"text": "Cats are aloof."}


async def test_a_turn_also_waits_for_a_background_tool(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(ToolCalls(ToolCall("wait_behind"), text="I will."), "It is done.")
    worker = Researcher(llm=new_llm("You research."))
    requester = await start(job_harness, worker)

    asking = asyncio.create_task(requester.ask("go"))
    await worker.calls.get()
    await job_harness.settle()
    assert not asking.done()
    worker.release.set()

    assert await asking == {"text": "It is done."}


async def test_the_llm_answers_after_a_tool_that_raises(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class FailingResearcher(Researcher):
        async def _wait(self, name: str) -> None:
            raise ValueError("I fell")

    server.reply(ToolCall("wait_here"), "It fell.")
    worker = FailingResearcher(llm=new_llm("You research."))
    raised = asyncio.Event()
    worker.llm.add_event_handler("on_error", lambda *_: raised.set())

    # The run does not end before the tool has raised.
    call_functions = worker.llm.run_function_calls

    async def until_raised(calls: Any) -> None:
        await call_functions(calls)
        await raised.wait()
        await asyncio.sleep(0)

    worker.llm.run_function_calls = until_raised
    requester = await start(job_harness, worker)

    assert await requester.ask("go") == {"text": "It fell."}


async def test_fresh_turns_run_at_the_same_time_and_do_not_change_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    topics = [f"topic {number}" for number in range(5)]
    for topic in topics:
        server.on(last_asked(topic), Text(f"All about {topic}.", first_token_after=0.3))
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)

    responses = await asyncio.gather(*(requester.ask(topic, fresh=True) for topic in topics))

    assert responses == [{"text": f"All about {topic}."} for topic in topics]
    starts = [request.arrived_at for request in server.requests]
    assert max(starts) < min(request.ended_at for request in server.requests)
    assert sorted(asked(request) for request in server.requests) == [[topic] for topic in topics]
    assert {request.system for request in server.requests} == {"You argue."}
    assert worker.context.messages == []


async def test_the_text_of_the_llm_is_streamed_to_the_requester_before_the_response(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal friends.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    payload = {"topic": "dogs", "stream": True}
    async with requester.job("debater", name="argue", payload=payload, timeout=30) as j:
        events = [(event.type, event.data) async for event in j]

    assert events[0] == ("stream_start", None)
    assert {kind for kind, _ in events[1:]} == {"stream_data"}
    assert "".join(data["text"] for _, data in events[1:]) == "Dogs are loyal friends."
    assert j.response == {"text": "Dogs are loyal friends."}


# Failures


@pytest.mark.parametrize(
    ("reply", "cause", "fresh"),
    [
        (Failure(400, "the model is out of order"), "the model is out of order", False),
        ("", "empty answer", False),
        (ToolCall("look_up", {"word": "dog"}), "the model is out of order", False),
        (Disconnect(after="Dogs are"), "the LLM turn of worker 'debater' gave no answer", False),
        (Failure(400, "the model is out of order"), "the model is out of order", True),
        ("", "empty answer", True),
    ],
    ids=["error", "empty", "after a tool call", "disconnect", "fresh error", "fresh empty"],
)
async def test_a_turn_without_an_answer_fails_the_job_and_does_not_affect_the_next(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    reply: Any,
    cause: str,
    fresh: bool,
):
    server.on(last_asked("dogs"), reply, repeat=False)
    server.on("dog in the book", Failure(400, "the model is out of order"), repeat=False)
    server.on("cats", "Cats are aloof.")
    worker = Researcher(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)

    with pytest.raises(JobError, match=cause) as caught:
        await requester.ask("dogs", fresh=fresh)

    outcome = caught.value.outcomes["debater"]
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.error is not None
    assert outcome.error.type == "LLMTurnError"
    assert worker.context.messages == []
    assert await requester.ask("cats", fresh=fresh) == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_stall_past_the_timeout_ends_the_turn_and_closes_the_connection(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, fresh: bool
):
    server.on(last_asked("dogs"), Stall(after="Dogs"))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)

    with pytest.raises(JobError, match=r"more than 2 s"):
        await requester.ask("dogs", timeout=2, fresh=fresh)

    error = worker.failed.get_nowait()
    assert isinstance(error, LLMTurnTimeoutError)
    assert isinstance(error, TimeoutError)
    await server.requests[0].wait_hung_up()
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[1]) == ["cats"]


async def test_the_wait_for_another_turn_counts_against_the_timeout(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)
    first = asyncio.create_task(requester.ask("dogs"))
    (request,) = await server.wait_for_requests(1)

    with pytest.raises(JobError, match=r"more than 0\.05 s"):
        await requester.ask("cats", timeout=0.05)

    assert request.outcome == "streaming"
    assert server.requests == [request]
    await cancelled(first)


async def test_a_worker_that_is_cancelled_ends_its_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(Stall(after="Dogs"))
    worker = Debater(llm=new_llm("You argue."))
    await start(job_harness, worker)
    turn = asyncio.create_task(worker.llm_turn("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await job_harness.cancel(worker)

    with pytest.raises(LLMTurnInterruptedError, match="the worker stopped"):
        await turn
    await request.wait_hung_up()


async def test_a_worker_that_ends_does_not_wait_for_the_background_tools_of_a_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(ToolCall("wait_behind"))
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)
    turn = asyncio.create_task(worker.llm_turn("dogs"))
    await worker.calls.get()

    await job_harness.end(worker)

    with pytest.raises(LLMTurnInterruptedError, match="the worker stopped"):
        await turn


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_a_worker_that_has_stopped_refuses_a_turn(
    job_harness: JobHarness, new_llm: NewLLM, how: str
):
    worker = Debater(llm=new_llm("You argue."))
    await start(job_harness, worker)
    await getattr(job_harness, how)(worker)

    with pytest.raises(LLMTurnInterruptedError, match="has stopped"):
        await worker.llm_turn("dogs")


async def test_a_user_s_run_whose_service_raises_does_not_block_the_next_turn(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    monkeypatch: pytest.MonkeyPatch,
):
    server.reply("Cats are aloof.")
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)
    process_frame = worker.llm.process_frame
    broke_off = asyncio.Event()

    async def break_off(frame: Frame, *args: Any) -> None:
        if isinstance(frame, LLMContextFrame) and not broke_off.is_set():
            broke_off.set()
            raise RuntimeError("gone")
        await process_frame(frame, *args)

    monkeypatch.setattr(worker.llm, "process_frame", break_off)
    dogs = {"role": "user", "content": "dogs"}
    await worker.queue_frame(LLMMessagesAppendFrame([dogs], run_llm=True))
    await broke_off.wait()

    assert await requester.ask("cats") == {"text": "Cats are aloof."}


@pytest.mark.parametrize("half", [[], [LLMFullResponseStartFrame(), LLMTextFrame("Dogs are")]])
async def test_a_service_that_raises_fails_its_turn_at_once(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    monkeypatch: pytest.MonkeyPatch,
    half: list[Frame],
):
    server.reply("Cats are aloof.")
    worker = Debater(llm=new_llm("You argue."))
    requester = await start(job_harness, worker)
    process_frame = worker.llm.process_frame

    async def break_off(frame: Frame, *args: Any) -> None:
        if isinstance(frame, LLMContextFrame) and frame.context.messages[-1]["content"] == "dogs":
            for part in half:
                await worker.llm.push_frame(part)
            raise RuntimeError("out of order")
        await process_frame(frame, *args)

    monkeypatch.setattr(worker.llm, "process_frame", break_off)

    with pytest.raises(JobError, match="out of order"):
        await requester.ask("dogs")

    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    said = [message["content"] for message in worker.context.messages]
    assert said == ["cats", "Cats are aloof."]


async def test_a_handler_may_catch_a_failed_turn_and_respond_later(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Patient(Debater):
        @job(name="argue")
        async def argue(self, message: BusJobRequestMessage) -> None:
            try:
                await self.llm_turn(message.payload["topic"])
            except LLMTurnError:
                self.create_task(self._later(message.job_id), "later")

        async def _later(self, job_id: str) -> None:
            await self.flush_pipeline()
            await self.send_job_response(job_id, {"text": "No idea."})

    server.reply(Failure(400, "out of order"))
    requester = await start(job_harness, Patient(llm=new_llm("You argue.")))

    assert await requester.ask("dogs") == {"text": "No idea."}


# Bad input


async def test_a_tool_cannot_ask_the_llm_that_waits_for_it(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Caller(Debater):
        def __init__(self, **keywords: Any):
            super().__init__(**keywords)
            self.context.set_tools(self.build_tools())

        @tool
        async def think(self, params: FunctionCallParams):
            """Think."""
            try:
                await self.llm_turn("What now?")
            except InvalidJobError as error:
                await params.result_callback({"error": str(error)})

    server.reply(ToolCall("think"), "I cannot.")
    requester = await start(job_harness, Caller(llm=new_llm("You think.")))

    assert await requester.ask("think") == {"text": "I cannot."}
    assert server.requests[1].mentions("a tool of worker 'debater' called llm_turn()")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("",), InvalidJobError, "messages is empty"),
        (("  ",), InvalidJobError, "messages is empty"),
        (([],), InvalidJobError, "messages is empty"),
        (([3],), InvalidJobTypeError, "a message is 3"),
        ((3,), InvalidJobTypeError, "messages is 3"),
        (({"role": "user", "content": "hi"},), InvalidJobTypeError, "give a list"),
    ],
)
async def test_bad_messages_are_refused(
    new_llm: NewLLM, arguments: tuple[Any, ...], error: type[Exception], message: str
):
    worker = Debater(llm=new_llm("You argue."))
    with pytest.raises(error, match=message):
        await worker.llm_turn(*arguments)


@pytest.mark.parametrize("option", ["fresh", "stream", "keep_unfinished"])
async def test_an_option_that_is_not_true_or_false_is_refused(new_llm: NewLLM, option: str):
    worker = Debater(llm=new_llm("You argue."))
    with pytest.raises(InvalidJobTypeError, match=f"{option} is 'no'; give True or False"):
        await worker.llm_turn("hi", **{option: "no"})


@pytest.mark.parametrize(
    ("module", "name", "settings"),
    [
        ("openai.realtime.llm", "OpenAIRealtimeLLMService", {}),
        ("openai.live.llm", "OpenAILiveLLMService", {}),
        ("google.gemini_live.llm", "GeminiLiveLLMService", {}),
        ("xai.realtime.llm", "GrokRealtimeLLMService", {}),
        ("inworld.realtime.llm", "InworldRealtimeLLMService", {}),
        ("azure.realtime.llm", "AzureRealtimeLLMService", {"base_url": "wss://localhost"}),
        ("azure.voice_live.llm", "AzureVoiceLiveLLMService", {"endpoint": "wss://localhost"}),
    ],
)
async def test_a_realtime_service_refuses_a_turn_with_the_alternative(
    module: str, name: str, settings: dict[str, Any]
):
    service = getattr(pytest.importorskip(f"pipecat.services.{module}"), name)
    worker = Debater(llm=service(api_key="test", **settings))

    with pytest.raises(InvalidJobError, match=r"realtime \(speech-to-speech\).*@job_tool"):
        await worker.llm_turn("dogs")
    with pytest.raises(InvalidJobError, match=r"no run_inference\(\).*text LLM"):
        await worker.llm_turn("dogs", fresh=True)


async def test_bad_options_are_refused(new_llm: NewLLM):
    worker = Debater(llm=new_llm("You argue."))
    with pytest.raises(InvalidJobError, match="timeout"):
        await worker.llm_turn("dogs", timeout=-1)
    with pytest.raises(InvalidJobError, match="leave stream out"):
        await worker.llm_turn("dogs", stream=True)
    with pytest.raises(InvalidJobError, match="leave stream out"):
        await worker.llm_turn("dogs", stream=True, fresh=True)


def test_the_errors_name_the_worker_and_the_cause():
    error = LLMTurnError("critic", "quota exceeded", text="So far")
    assert str(error) == "the LLM turn of worker 'critic' gave no answer: quota exceeded"
    assert (error.worker, error.cause, error.text) == ("critic", "quota exceeded", "So far")
