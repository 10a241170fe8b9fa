"""``hear()``: what the bot says to a text."""

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import InterruptionFrame
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

from pipecat_jobs import (
    InvalidJobError,
    InvalidJobTypeError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, Stall, Text, ToolCall

__all__ = ["new_llm"]


def said_in(worker: Debater) -> list[Any]:
    return [message["content"] for message in worker.context.messages if "content" in message]


async def test_the_bot_answers_after_its_functions_and_the_conversation_goes_on(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(ToolCall("look_up", {"word": "dog"}), "It is on page 7.", "You are welcome.")
    worker = Researcher(llm=new_llm("You research."), active=True)
    await start(job_harness, worker)

    found = await worker.hear("Where is the dog?")
    thanked = await worker.hear("Thanks")

    assert (found, thanked) == ("It is on page 7.", "You are welcome.")
    assert [call.name for call in found.calls] == ["look_up"]
    assert asked(server.requests[-1])[-2:] == ["It is on page 7.", "Thanks"]
    assert said_in(worker)[0] == "Where is the dog?"


async def test_texts_are_answered_one_after_the_other_and_interrupt_nothing(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("hello"), Text("Hello to you, my dear user.", pace=0.02))
    server.on(last_asked("dogs"), Text("Dogs are loyal.", pace=0.02))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Debater(llm=new_llm("You talk."), active=True)
    talk = Talk(worker)
    await start(job_harness, worker)
    await talk.say("hello")
    await server.wait_for_requests(1)

    answers = await asyncio.gather(worker.hear("dogs"), worker.hear("cats"))

    assert answers == ["Dogs are loyal.", "Cats are aloof."]
    assert await talk.said.get() == "Hello to you, my dear user."


async def test_an_interruption_ends_the_answer_and_leaves_what_was_said_in_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(Stall(after="Dogs"))
    worker = Debater(llm=new_llm("You talk."), active=True)
    await start(job_harness, worker)
    hearing = asyncio.create_task(worker.hear("dogs"))
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)

    await worker.queue_frame(InterruptionFrame())

    with pytest.raises(LLMTurnInterruptedError, match="interrupted"):
        await hearing
    assert said_in(worker) == ["dogs", "Dogs"]


async def test_a_text_without_an_answer_in_time_is_stopped_and_stays_in_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Debater(llm=new_llm("You talk."), active=True)
    await start(job_harness, worker)

    with pytest.raises(LLMTurnTimeoutError, match=r"more than 0\.2 s"):
        await worker.hear("dogs", timeout=0.2)

    assert said_in(worker)[0] == "dogs"
    assert await worker.hear("cats") == "Cats are aloof."


@pytest.mark.parametrize(
    ("text", "kind"), [("", InvalidJobError), (" ", InvalidJobError), (7, InvalidJobTypeError)]
)
async def test_an_empty_text_is_refused(new_llm: NewLLM, text: Any, kind: type[Exception]):
    with pytest.raises(kind, match="give"):
        await Debater(llm=new_llm("You talk.")).hear(text)
