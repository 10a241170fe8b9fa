"""The result of a call in the background reaches the user as a report."""

import asyncio
import json
from typing import Any

import pytest
from support.tools_stage import (
    Colleague,
    NewLLM,
    Stage,
    calls_debate,
    new_llm,
    raise_stage,
)

from pipecat_jobs import InvalidJobError, LLMContextWorker, UIWorker, job_tool
from pipecat_jobs.conversation import ReportChange, ReportState
from pipecat_jobs.testing import (
    JobHarness,
    LLMRequest,
    ScriptedLLMServer,
    Text,
    ToolCall,
    ToolCalls,
)

__all__ = ["new_llm"]


class Moderator(LLMContextWorker):
    def __init__(self, llm: Any, **keywords: Any):
        super().__init__("moderator", llm=llm, active=True, **keywords)
        self.changes: list[ReportChange] = []
        self._changed = asyncio.Event()

    async def on_report_changed(self, change: ReportChange) -> None:
        self.changes.append(change)
        self._changed.set()

    async def until_states(self, *states: str) -> None:
        """Wait until the reports have had these states, and check that they had no other."""
        while len(self.changes) < len(states):
            self._changed.clear()
            await self._changed.wait()
        assert [change.state for change in self.changes] == list(states)

    @job_tool("advocate", job="argue", cancel_on_interruption=False)
    async def debate(self, topic: str):
        """Analyze a topic."""
        return {"topic": topic}


async def begin(
    harness: JobHarness, server: ScriptedLLMServer, llm: Any, *then: str, response: Any = "default"
) -> tuple[Stage, Moderator, Colleague]:
    """Have the LLM call the tool, and the worker delay its response."""
    calls_debate(server, *then)
    advocate = Colleague("advocate", holds=True, response=response)
    worker = Moderator(llm)
    stage = await raise_stage(harness, worker, advocate)
    await stage.say()
    await advocate.started.get()
    return stage, worker, advocate


def reports(request: LLMRequest, kind: str = "reports") -> list[Any]:
    """The reports in the last message for the LLM that has some."""
    for message in reversed(request.messages):
        text = str(message.get("content"))
        if '"type": "report"' in text:
            return json.loads(text).get(kind, [])
    return []


async def test_the_call_is_settled_without_a_run_and_the_result_is_said(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, worker, advocate = await begin(job_harness, scripted_llm, new_llm(), "It is done.")

    advocate.release.set()

    _, second = await scripted_llm.wait_for_requests(2)
    (settled,) = stage.settled
    assert "its result comes in a report" in settled.result["status"]
    assert settled.properties is not None
    assert settled.properties.run_llm is False
    (report,) = reports(second)
    assert report["report"] == {
        "tool": "debate",
        "arguments": {"topic": "AI"},
        "result": {"text": "advocate says"},
    }
    await worker.until_states("waiting", "offered", "said")
    assert len(scripted_llm.requests) == 2
    # The newest message is the one that the LLM is to answer.
    assert '"type": "report"' in second.messages[-1]["content"]


async def test_a_call_that_joins_another_is_reported_once(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    call = ToolCall("debate", {"topic": "AI"})
    scripted_llm.reply(ToolCalls(call, call), "It is done.")
    advocate = Colleague("advocate", holds=True)
    worker = Moderator(new_llm())
    stage = await raise_stage(job_harness, worker, advocate)
    await stage.say()
    await advocate.started.get()
    await job_harness.settle()

    advocate.release.set()

    await stage.until_settled(2)
    await worker.until_states("waiting", "offered", "said")


async def test_a_failure_is_said_too(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, _, advocate = await begin(
        job_harness, scripted_llm, new_llm(), "Sorry.", response="the oven is broken"
    )

    advocate.release.set()

    _, second = await scripted_llm.wait_for_requests(2)
    (report,) = reports(second)
    assert report["report"]["result"] == {"error": "the oven is broken"}
    await stage.worker.flush_pipeline()


async def test_updates_are_silent_and_the_latest_reaches_the_llm_with_its_next_run(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, worker, advocate = await begin(
        job_harness, scripted_llm, new_llm(), "Half of it.", "It is done."
    )
    (job_id,) = worker.job_groups
    for percent in (10, 30, 50):
        await advocate.send_job_update(job_id, {"percent": percent})
    await worker.until_states("waiting", "waiting", "superseded", "waiting", "superseded")
    assert len(scripted_llm.requests) == 1

    await stage.say("how far is it?")

    _, second = await scripted_llm.wait_for_requests(2)
    (update,) = reports(second, "updates")
    assert update["report"]["update"] == {"percent": 50}
    assert second.messages[-1]["content"] == "how far is it?"
    await advocate.send_job_update(job_id, {"percent": 90})
    advocate.release.set()
    _, _, third = await scripted_llm.wait_for_requests(3)
    assert reports(third, "updates") == []
    assert len(reports(third)) == 1
    await stage.worker.flush_pipeline()


async def test_a_turn_that_waits_for_the_result_gets_it_at_once(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls_debate(scripted_llm, "It is good.")
    worker = Moderator(new_llm())
    await raise_stage(job_harness, worker, Colleague("advocate"))

    assert await worker.llm_turn("What do you think?") == "It is good."

    assert worker.changes == []


def test_report_needs_a_call_in_the_background():
    with pytest.raises(InvalidJobError, match="needs cancel_on_interruption=False"):
        job_tool("advocate", report="at_once")


def test_an_unknown_way_to_report_is_refused():
    with pytest.raises(InvalidJobError, match="'in_silence', 'at_once'"):
        job_tool("advocate", cancel_on_interruption=False, report="never")  # type: ignore[typeddict-item]


class Screen(UIWorker):
    """A worker of the page that the user sees."""


async def test_a_ui_worker_reports_in_text(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply("It is ready.")
    worker = Screen("screen", llm=new_llm())
    await job_harness.start(worker)

    receipt = await worker.report("ready")

    assert await receipt.until_settled() is ReportState.SAID
    (request,) = scripted_llm.requests
    assert [report["report"] for report in reports(request)] == ["ready"]


async def test_a_fresh_turn_neither_has_a_report_nor_holds_it_back(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.on("summarize", Text("A summary.", first_token_after=1000.0))
    scripted_llm.on(lambda request: bool(reports(request)), "It is ready.")
    worker = Moderator(new_llm())
    await raise_stage(job_harness, worker)
    turn = asyncio.create_task(worker.llm_turn("summarize", fresh=True))
    (fresh,) = await scripted_llm.wait_for_requests(1)

    receipt = await worker.report("ready")

    assert await receipt.until_settled() is ReportState.SAID
    assert not turn.done()
    assert reports(fresh) == []
    turn.cancel()
