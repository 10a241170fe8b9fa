"""The same tool call again, while the first one runs."""

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import EndFrame
from support.tools_stage import Colleague, NewLLM, Stage, new_llm, raise_stage

from pipecat_jobs import InvalidJobError, LLMContextWorker, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls
from pipecat_jobs.tools.dispatch import Dispatch
from pipecat_jobs.tools.repeats import Repeats, Run
from pipecat_jobs.tools.results import ToolResult

__all__ = ["new_llm"]

AI = ToolCall("debate", {"topic": "AI"})
ANSWER = {"text": "advocate says"}
REPLACED = {"stopped": "A newer call of debate took the place of this one."}


class Moderator(LLMContextWorker):
    @job_tool(
        "advocate",
        job="argue",
        cancellable_by_llm=True,
        cancel_on_interruption=False,
        report="at_once",
    )
    async def join(self, topic: str, style: str = "calm"):
        """Analyze a topic."""
        return {"topic": topic}

    @job_tool("advocate", job="argue", on_repeat="refuse")
    async def refuse(self, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    @job_tool("advocate", job="argue", on_repeat="refuse", repeat_by="tool")
    async def refuse_any(self, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    @job_tool(
        "advocate",
        job="argue",
        on_repeat="confirm",
        cancel_on_interruption=False,
        report="at_once",
    )
    async def confirm(self, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    @job_tool("advocate", job="argue", on_repeat="replace")
    async def replace(self, topic: str):
        """Analyze a topic."""
        return {"topic": topic}


async def calling(
    harness: JobHarness, server: ScriptedLLMServer, llm: Any, *calls: ToolCall
) -> tuple[Stage, Colleague]:
    """Have the LLM make calls in one answer, and the worker delay its responses."""
    server.reply(ToolCalls(*calls))
    advocate = Colleague("advocate", holds=True)
    stage = await raise_stage(harness, Moderator("moderator", llm=llm, active=True), advocate)
    await stage.say()
    await advocate.started.get()
    await harness.settle()
    return stage, advocate


async def test_a_joined_call_sends_no_job_and_has_the_same_result(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls = [
        ToolCall("join", {"topic": "AI"}),
        # The same call, with its default value written out.
        ToolCall("join", {"topic": "AI", "style": "calm"}),
    ]
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), *calls)
    scripted_llm.reply("Done.")

    advocate.release.set()

    await stage.until_settled(2)
    assert stage.results == [ANSWER, ANSWER]
    assert len(advocate.payloads) == 1
    await scripted_llm.wait_for_requests(2)
    await stage.worker.flush_pipeline()


@pytest.mark.parametrize("other", [{"topic": "cats"}, {"topic": "AI", "style": "loud"}])
async def test_a_call_with_other_arguments_is_another_call(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    other: dict[str, Any],
):
    calls = [ToolCall("join", {"topic": "AI"}), ToolCall("join", other)]
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), *calls)

    await advocate.started.get()

    assert len(advocate.payloads) == 2
    await job_harness.end(stage.worker)


async def test_a_joined_call_sends_its_own_jobs_when_the_first_is_cancelled(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls = [ToolCall("join", {"topic": "AI"}, call_id=name) for name in ("first", "second")]
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), *calls)
    scripted_llm.reply(ToolCall("cancel_join", {"tool_call_id": "first"}), "Well.", "Done.")

    await stage.say("only once, please")
    await advocate.stopped.get()
    await advocate.started.get()
    advocate.release.set()

    await stage.until(lambda: any(f.tool_call_id == "second" for f in stage.settled))
    (second,) = [f for f in stage.settled if f.tool_call_id == "second"]
    assert getattr(second, "result", None) == ANSWER
    await stage.worker.flush_pipeline()


async def test_a_refused_call_gets_its_result_at_once(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCall("refuse", {"topic": "AI"})
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), call, call)

    await stage.until_settled()
    (refusal,) = stage.results
    assert "is already running with these arguments" in refusal["error"]
    assert len(advocate.payloads) == 1

    scripted_llm.reply("Done.")
    advocate.release.set()
    await stage.until_settled(2)
    assert stage.results[1] == ANSWER
    await scripted_llm.wait_for_requests(2)
    await stage.worker.flush_pipeline()


@pytest.mark.not_on(
    "redis",
    "pubsub",
    reason="the first call never begins",
)
async def test_a_replaced_call_is_settled_without_a_comment_and_its_jobs_stop(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCall("replace", {"topic": "AI"})
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), call, call)

    await advocate.stopped.get()
    await advocate.started.get()
    await stage.until_settled()
    assert stage.results == [{"stopped": "A newer call of replace took the place of this one."}]
    assert stage.settled[0].properties.run_llm is False

    scripted_llm.reply("Done.")
    advocate.release.set()
    await stage.until_settled(2)
    assert stage.results[1] == ANSWER
    await scripted_llm.wait_for_requests(2)
    await stage.worker.flush_pipeline()
    assert len(scripted_llm.requests) == 2


async def test_a_call_with_other_arguments_is_refused_when_all_calls_of_the_tool_are_compared(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls = [ToolCall("refuse_any", {"topic": topic}) for topic in ("AI", "cats")]
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), *calls)

    await stage.until_settled()

    (refusal,) = stage.results
    assert refusal == {
        "error": "refuse_any is already running. Do not call it again, wait for its result."
    }
    assert len(advocate.payloads) == 1
    await job_harness.end(stage.worker)


async def test_the_llm_has_to_ask_the_user_before_it_repeats_a_call(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(
        ToolCall("confirm", {"topic": "AI"}),
        ToolCall("confirm", {"topic": "AI"}),
        "It is running. Once more?",
        ToolCall("confirm", {"topic": "AI", "confirmed": True}),
    )
    advocate = Colleague("advocate", holds=True)
    moderator = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, moderator, advocate)
    await stage.say()
    await advocate.started.get()
    await stage.say("debate AI, please")
    await scripted_llm.wait_for_requests(3)
    (question,) = stage.results
    assert "Ask the user" in question["needs_confirmation"]
    await stage.worker.flush_pipeline()
    assert len(advocate.payloads) == 1

    await stage.say("yes, once more")
    await advocate.started.get()

    assert advocate.payloads == [{"topic": "AI"}, {"topic": "AI"}]
    assert "confirmed" in Moderator.confirm.properties
    await job_harness.end(stage.worker)


def test_a_tool_that_is_to_be_confirmed_leaves_the_name_of_the_argument_free():
    async def order(dish: str, confirmed: bool):
        """Order a dish."""
        return {"dish": dish}

    with pytest.raises(InvalidJobError, match="'confirmed'"):
        job_tool("kitchen", on_repeat="confirm")(order)


async def test_the_end_of_the_session_settles_the_first_and_the_joined_call(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCall("join", {"topic": "AI"})
    stage, advocate = await calling(job_harness, scripted_llm, new_llm(), call, call)

    await stage.worker.queue_frame(EndFrame())
    await stage.worker.wait()

    assert [list(result) for result in stage.results] == [["stopped"], ["stopped"]]
    await job_harness.settle()
    assert len(advocate.payloads) == 1


async def test_nothing_is_kept_of_calls_that_have_ended():
    repeats = Repeats("debate", "replace")
    working, held = asyncio.Event(), asyncio.Event()

    async def hold(_: Run) -> ToolResult:
        working.set()
        await held.wait()
        return ToolResult("held")

    async def steer(_: Dispatch) -> None:
        raise AssertionError("it replaces")

    async def fail(_: Run) -> ToolResult:
        raise ValueError("no such topic")

    first = asyncio.create_task(repeats.run("same", hold, steer))
    await working.wait()
    second = asyncio.create_task(repeats.run("same", hold, steer))
    cut = asyncio.create_task(repeats.run("other", hold, steer))
    assert (await first).value == REPLACED
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    with pytest.raises(ValueError, match="no such topic"):
        await repeats.run("third", fail, steer)
    held.set()
    assert (await second).value == "held"

    assert repeats._running == {}
