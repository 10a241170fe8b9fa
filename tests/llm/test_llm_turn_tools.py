"""Turns of ``llm_turn()`` whose LLM calls functions: when they end, and what they leave."""

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameProcessor
from support.llm_workers import LONG, NewLLM, Researcher, Talk, asked, last_asked, new_llm, start
from support.workers import cancelled

from pipecat_jobs import JobError
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

LOOKS_UP = ToolCalls(ToolCall("wait_here"), text="Let me look that up.")


def on_frame(processor: FrameProcessor, event: str, kind: type[Frame]) -> asyncio.Event:
    """An event that is set once a processor has seen a frame of a kind."""
    seen = asyncio.Event()

    def see(_: object, frame: Frame) -> None:
        if isinstance(frame, kind):
            seen.set()

    processor.add_event_handler(event, see)
    return seen


def hold(processor: FrameProcessor, event: str, kind: type[Frame]) -> asyncio.Event:
    """Hold the first frame of a kind back until the event is set."""
    release = asyncio.Event()

    async def wait(_: object, frame: Frame) -> None:
        if isinstance(frame, kind):
            await release.wait()

    processor.add_event_handler(event, wait)
    return release


# Results whose run the aggregator postpones


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (BotStartedSpeakingFrame, BotStoppedSpeakingFrame),
        (UserStartedSpeakingFrame, UserStoppedSpeakingFrame),
    ],
    ids=["bot", "user"],
)
async def test_a_turn_waits_for_the_run_that_speech_postpones(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    begins: type[Frame],
    ends: type[Frame],
):
    server.reply(LOOKS_UP, "It is on shelf 7.")
    worker = Researcher(llm=new_llm("You research."), active=True)
    requester = await start(job_harness, worker)
    aggregator = worker.assistant_aggregator
    began = on_frame(aggregator, "on_after_process_frame", begins)
    result_seen = on_frame(aggregator, "on_after_process_frame", FunctionCallResultFrame)
    asking = asyncio.create_task(requester.ask("where is it?"))
    await worker.calls.get()
    await aggregator.queue_frame(begins())
    await began.wait()

    worker.release.set()
    await result_seen.wait()
    await job_harness.settle()
    assert not asking.done()
    await aggregator.queue_frame(ends())

    assert await asking == {"text": "It is on shelf 7."}
    assert len(server.requests) == 2


async def test_a_turn_waits_for_the_run_that_an_appended_message_postpones(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(LOOKS_UP, "It is on shelf 7.")
    worker = Researcher(llm=new_llm("You research."))
    requester = await start(job_harness, worker)
    aggregator = worker.assistant_aggregator
    came = on_frame(aggregator, "on_before_process_frame", FunctionCallResultFrame)
    release = hold(aggregator, "on_before_process_frame", FunctionCallResultFrame)
    worker.release.set()
    asking = asyncio.create_task(requester.ask("where is it?"))
    await came.wait()
    note: Any = {"role": "developer", "content": "Shelves are numbered."}
    await aggregator.queue_frame(LLMMessagesAppendFrame([note]))
    for _ in range(100):
        await asyncio.sleep(0)
    assert aggregator.has_queued_frame(LLMMessagesAppendFrame)
    release.set()

    assert await asking == {"text": "It is on shelf 7."}
    assert len(server.requests) == 2


async def test_a_run_that_the_aggregator_postpones_and_forgets_still_takes_place(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(LOOKS_UP, "It is on shelf 7.")
    worker = Researcher(llm=new_llm("You research."), active=True)
    requester = await start(job_harness, worker)
    aggregator = worker.assistant_aggregator
    began = on_frame(aggregator, "on_after_process_frame", BotStartedSpeakingFrame)
    result_seen = on_frame(aggregator, "on_after_process_frame", FunctionCallResultFrame)
    # The text before the call enters the context after the result of the call.
    release = hold(worker.llm, "on_before_push_frame", LLMFullResponseEndFrame)
    await aggregator.queue_frame(BotStartedSpeakingFrame())
    await began.wait()
    worker.release.set()
    asking = asyncio.create_task(requester.ask("where is it?"))
    await result_seen.wait()

    release.set()

    assert await asking == {"text": "It is on shelf 7."}


async def test_cancelling_the_job_drops_the_run_that_speech_postponed(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(LOOKS_UP, "Cats are aloof.")
    worker = Researcher(llm=new_llm("You research."), active=True)
    requester = await start(job_harness, worker)
    aggregator = worker.assistant_aggregator
    began = on_frame(aggregator, "on_after_process_frame", BotStartedSpeakingFrame)
    result_seen = on_frame(aggregator, "on_after_process_frame", FunctionCallResultFrame)
    ended = on_frame(aggregator, "on_after_process_frame", BotStoppedSpeakingFrame)
    asking = asyncio.create_task(requester.ask("where is it?"))
    await worker.calls.get()
    await aggregator.queue_frame(BotStartedSpeakingFrame())
    await began.wait()
    worker.release.set()
    await result_seen.wait()

    await cancelled(asking)
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    await aggregator.queue_frame(BotStoppedSpeakingFrame())
    await ended.wait()
    await job_harness.settle()

    assert asked(server.requests[-1]) == ["cats"]
    assert len(server.requests) == 2


# Functions that are called one after the other


@pytest.mark.parametrize("names", [("wait_here", "look_up"), ("wait_behind", "wait_here")])
async def test_cancelling_the_job_drops_the_calls_that_have_not_begun(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, names: tuple[str, str]
):
    calls = [ToolCall(name, {"word": "dog"} if name == "look_up" else {}) for name in names]
    server.on(last_asked("dogs"), ToolCalls(*calls))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Researcher(llm=new_llm("You research.", run_in_parallel=False))
    begun = on_frame(worker.llm, "on_before_push_frame", FunctionCallResultFrame)
    requester = await start(job_harness, worker)
    asking = asyncio.create_task(requester.ask("dogs"))
    assert await worker.calls.get() == names[0]

    await cancelled(asking)

    assert await worker.cancelled.get() == names[0]
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert worker.calls.empty()
    assert begun.is_set()
    assert asked(server.requests[-1]) == ["cats"]
    assert not worker.assistant_aggregator.has_function_calls_in_progress


async def test_a_user_s_interruption_drops_the_calls_that_have_not_begun(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(
        last_asked("dogs"),
        ToolCalls(ToolCall("wait_here"), ToolCall("wait_here"), ToolCall("wait_behind")),
        repeat=False,
    )
    server.on(lambda _: True, "Done.")
    worker = Researcher(llm=new_llm("You research.", run_in_parallel=False), active=True)
    talk = Talk(worker)
    await start(job_harness, worker)
    await talk.say("dogs")
    assert await worker.calls.get() == "wait_here"

    await worker.queue_frame(InterruptionFrame())

    # The tool runs in the background, so it goes on.
    assert await worker.calls.get() == "wait_behind"
    worker.release.set()
    while await talk.said.get() != "Done.":
        pass
    results = [m["content"] for m in worker.context.messages if m["role"] == "tool"]
    assert [str(result).strip('"') for result in results[:2]] == ["CANCELLED", "CANCELLED"]
    assert worker.calls.empty()


# What a failed turn leaves


async def test_a_failed_turn_keeps_messages_that_others_added_to_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("hello"), ToolCall("wait_behind"), repeat=False)
    server.on(last_asked("dogs"), LONG)
    server.on(lambda _: True, "I waited.")
    worker = Researcher(llm=new_llm("You research."), active=True)
    talk = Talk(worker)
    requester = await start(job_harness, worker)
    result_seen = on_frame(
        worker.assistant_aggregator, "on_after_process_frame", FunctionCallResultFrame
    )
    await talk.say("hello")
    await worker.calls.get()
    asking = asyncio.create_task(requester.ask("dogs"))
    _, dogs = await server.wait_for_requests(2)
    await dogs.wait_token(1)
    note: Any = {"role": "developer", "content": "Be brief."}
    worker.context.add_message(note)
    worker.release.set()
    await result_seen.wait()

    await cancelled(asking)
    await job_harness.settle()

    left = worker.context.messages
    assert note in left
    assert any("waited" in str(message["content"]) for message in left if "content" in message)
    assert not any(message.get("content") == "dogs" for message in left)
    assert not any("word0" in str(message.get("content")) for message in left)


@pytest.mark.parametrize("name", ["look_up", "wait_behind"])
async def test_a_failed_turn_removes_its_own_calls_and_their_results(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, name: str
):
    arguments = {"word": "dog"} if name == "look_up" else {}
    server.on(last_asked("dogs"), ToolCalls(ToolCall(name, arguments), text="I will."))
    server.on(lambda _: True, Failure(400, "the model is out of order"))
    worker = Researcher(llm=new_llm("You research."))
    requester = await start(job_harness, worker)
    worker.release.set()

    with pytest.raises(JobError, match="out of order"):
        await requester.ask("dogs")

    assert worker.context.messages == []


async def test_a_repeated_question_whose_turn_fails_keeps_its_earlier_answer(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.", Failure(400, "the model is out of order"))
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)
    question: Any = [{"role": "user", "content": "dogs"}]

    await worker.llm_turn(question)
    with pytest.raises(Exception, match="out of order"):
        await worker.llm_turn(question)

    said = [message["content"] for message in worker.context.messages]
    assert said == ["dogs", "Dogs are loyal."]
