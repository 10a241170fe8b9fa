"""``hear()``: what the bot says to a text."""

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import InterruptionFrame
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import tool
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
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, Stall, Text, ToolCall, ToolCalls

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


class Archivist(Debater):
    """Has a function that runs in the background until it is released."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.release = asyncio.Event()

    @tool(cancel_on_interruption=False)
    async def search(self, params: FunctionCallParams, word: str):
        """Search the archive."""
        await self.release.wait()
        await params.result_callback({"page": 7})

    @tool
    async def leave_off(self, params: FunctionCallParams):
        """Stop to search."""
        # Both results are queued before the aggregator takes the first.
        reporting = asyncio.create_task(params.result_callback({"stopped": True}))
        self.release.set()
        await reporting


async def test_what_the_bot_says_beside_a_function_in_the_background_is_its_answer(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCalls(ToolCall("search", {"word": "dog"}), text="I am looking.")
    server.reply(call, "You are welcome.", "It is on page 7.", "Goodbye.")
    worker = Archivist(llm=new_llm("You research."), active=True)
    talk = Talk(worker)
    await start(job_harness, worker)

    looking = await worker.hear("Where is the dog?")
    thanked = await worker.hear("Thanks")
    assert (looking, thanked) == ("I am looking.", "You are welcome.")
    assert [call.result for call in looking.calls] == [None]

    worker.release.set()
    await server.wait_for_requests(3)
    assert await worker.hear("Bye") == "Goodbye."
    said = [await talk.said.get() for _ in range(4)]
    assert said == ["I am looking.", "You are welcome.", "It is on page 7.", "Goodbye."]


async def test_a_function_in_the_background_is_waited_for_if_the_bot_says_nothing_beside_it(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(ToolCall("search", {"word": "dog"}), "It is on page 7.")
    worker = Archivist(llm=new_llm("You research."), active=True)
    await start(job_harness, worker)

    hearing = asyncio.create_task(worker.hear("Where is the dog?"))
    await server.wait_for_requests(1)
    worker.release.set()

    assert await hearing == "It is on page 7."


async def test_the_result_of_a_function_arrives_together_with_one_of_the_background(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCalls(ToolCall("search", {"word": "dog"}), text="I am looking.")
    server.reply(call, ToolCall("leave_off"), "I have stopped.", "It was on page 7.")
    worker = Archivist(llm=new_llm("You research."), active=True)
    await start(job_harness, worker)
    await worker.hear("Where is the dog?")

    assert await worker.hear("Stop!") in ("I have stopped.", "It was on page 7.")
    await worker.flush_pipeline()
