"""LLM turns of an ``LLMWorker`` whose pipeline is the LLM alone."""

import asyncio
from typing import Any

import pytest
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import Frame, LLMMessagesAppendFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from support.llm_workers import LONG, NewLLM, asked, last_asked, new_llm, start
from support.workers import cancelled

from pipecat_jobs import InvalidJobError, JobError, LLMWorker, job, tool
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Host(LLMWorker):
    """Responds to jobs with the text of its LLM, which has two tools."""

    def __init__(self, llm: Any, **keywords: Any):
        super().__init__("debater", llm=llm, **keywords)
        self.called = asyncio.Event()

    @job(name="argue")
    async def argue(self, message: BusJobRequestMessage) -> dict[str, Any]:
        payload = dict(message.payload or {})
        return {"text": await self.llm_turn(payload.pop("topic"), **payload)}

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        topic: Any = {"role": "user", "content": message.payload["topic"]}
        await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

    @tool
    async def look_up(self, params: FunctionCallParams, word: str) -> None:
        """Look a word up.

        Args:
            word: The word.
        """
        await params.result_callback({"found": f"{word} in the book"})

    @tool
    async def wait_here(self, params: FunctionCallParams) -> None:
        """Wait."""
        self.called.set()
        await asyncio.Event().wait()


class Passing(FrameProcessor):
    """Passes every frame on."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


@pytest.mark.every_bus
async def test_turns_run_with_the_tools_of_the_worker_and_keep_its_context_on_every_bus(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), ToolCall("look_up", {"word": "dogs"}))
    server.on(lambda request: request.mentions("in the book"), "Dogs are loyal.", repeat=False)
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, Host(new_llm("You argue.")))

    assert await requester.ask("dogs") == {"text": "Dogs are loyal."}
    assert await requester.ask("cats") == {"text": "Cats are aloof."}

    question, call, result, *rest = asked(server.requests[-1])
    assert (question, call, rest) == ("dogs", None, ["Dogs are loyal.", "cats"])
    assert "dogs in the book" in str(result)


async def test_a_pipeline_of_the_llm_alone_that_the_bot_built_has_turns_too(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.", "Dogs bark.")
    llm = new_llm("You argue.")
    host = Host(llm, pipeline=Pipeline([llm]))
    await start(job_harness, host)

    assert await host.llm_turn("dogs") == "Dogs are loyal."
    assert await host.hear("What else?") == "Dogs bark."
    assert asked(server.requests[-1]) == ["dogs", "Dogs are loyal.", "What else?"]


async def test_jobs_at_once_take_turns_and_each_gets_its_own_text(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    topics = ["dogs", "cats", "fish"]
    for topic in topics:
        server.on(last_asked(topic), f"About {topic}.")
    requester = await start(job_harness, Host(new_llm("You argue.")))

    responses = await asyncio.gather(*(requester.ask(topic) for topic in topics))

    assert responses == [{"text": f"About {topic}."} for topic in topics]
    assert len(asked(server.requests[-1])) == 5


async def test_a_turn_that_is_cancelled_or_fails_leaves_nothing_in_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("fish"), Failure(400, "out of order"))
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, Host(new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)

    await cancelled(asking)
    await dogs.wait_hung_up()
    with pytest.raises(JobError, match="out of order"):
        await requester.ask("fish")

    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


async def test_cancelling_the_job_takes_the_call_of_its_turn_out_of_the_context(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), ToolCall("wait_here"))
    server.on(last_asked("cats"), "Cats are aloof.")
    host = Host(new_llm("You argue."))
    requester = await start(job_harness, host)
    asking = asyncio.create_task(requester.ask("dogs"))
    await host.called.wait()

    await cancelled(asking)

    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


async def test_a_frame_that_the_handler_queues_starts_a_turn_that_ends_with_its_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    requester = await start(job_harness, Host(new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)

    await cancelled(asking)

    await dogs.wait_hung_up()


async def test_building_the_worker_does_not_load_a_model(
    new_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[object] = []
    monkeypatch.setattr(
        LocalSmartTurnAnalyzerV3, "__init__", lambda *each, **_: loaded.append(each)
    )

    Host(new_llm("You argue."))

    assert loaded == []


async def test_a_bridged_llm_worker_has_fresh_turns_alone(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.")
    host = Host(new_llm("You argue."), bridged=())
    requester = await start(job_harness, host)

    assert await requester.ask("dogs", fresh=True) == {"text": "Dogs are loyal."}
    with pytest.raises(InvalidJobError, match=r"is bridged.*fresh=True.*without bridged="):
        await host.llm_turn("dogs")
    with pytest.raises(InvalidJobError, match="is bridged"):
        await host.hear("dogs")


async def test_a_pipeline_with_a_processor_of_the_bot_is_left_as_it_is(
    job_harness: JobHarness, new_llm: NewLLM
):
    llm = new_llm("You argue.")
    host = Host(llm, pipeline=Pipeline([llm, Passing()]))
    await start(job_harness, host)

    with pytest.raises(InvalidJobError, match="no LLM service between the two aggregators"):
        await host.llm_turn("dogs")
