"""Calls that wait in the queue of an LLM with run_in_parallel=False, while the user interrupts."""

import asyncio
from typing import Any

import pytest
from pipecat.frames.frames import InterruptionFrame
from pipecat.services.llm_service import FunctionCallParams
from support.tools_stage import Colleague, NewLLM, Stage, new_llm, raise_stage
from support.tools_talks import FlowTalk, Talk

from pipecat_jobs import LLMContextWorker, job_tool, tool, tool_call
from pipecat_jobs._llm.watch import watch
from pipecat_jobs._pipecat.schemas import FunctionSchema
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

NAMES = ("first", "second", "third", "background", "protected")


class Moderator(LLMContextWorker):
    """A moderator with a tool for each colleague, and one hand-written tool."""

    def __init__(self, llm: Any):
        super().__init__("moderator", llm=llm, active=True)
        self.entered: list[str] = []

    @job_tool("first", job="argue")
    async def ask_first(self, topic: str):
        """Ask the first."""
        return {"topic": topic}

    @job_tool("second", job="argue")
    async def ask_second(self, topic: str):
        """Ask the second."""
        return {"topic": topic}

    @tool
    async def ask_third(self, params: FunctionCallParams, topic: str):
        """Ask the third."""
        async with tool_call(params) as call:
            self.entered.append(topic)
            async with call.job("third", name="argue", timeout=30) as j:
                pass
            await call.finish(j.response)

    @job_tool("background", job="argue", cancel_on_interruption=False, report="at_once")
    async def ask_background(self, topic: str):
        """Ask the one in the background."""
        return {"topic": topic}

    @job_tool("protected", job="argue", protected=True, report="at_once")
    async def ask_protected(self, topic: str):
        """Ask the one that is protected."""
        return {"topic": topic}


def calls(*names: str) -> ToolCalls:
    return ToolCalls(*(ToolCall(f"ask_{name}", {"topic": name}) for name in names))


class Scene:
    """A call that runs, with other calls behind it."""

    def __init__(self, stage: Stage, others: dict[str, Colleague]):
        self.stage, self.others = stage, others

    @property
    def worker(self) -> Moderator:
        worker = self.stage.worker
        assert isinstance(worker, Moderator)
        return worker

    def asked(self, name: str) -> bool:
        return bool(self.others[name].payloads)


async def begin(
    harness: JobHarness, server: ScriptedLLMServer, llm: Any, *names: str, then: Any = "Summary."
) -> Scene:
    server.reply(calls(*names), then)
    others = {name: Colleague(name, holds=True) for name in NAMES}
    stage = await raise_stage(harness, Moderator(llm), *others.values())
    await stage.say()
    await others[names[0]].started.get()
    return Scene(stage, others)


@pytest.mark.parametrize(
    "names",
    [
        # Pipecat cancels its calls in the order in which the tools were registered.
        ("first", "second"),
        ("second", "first"),
        ("first", "third"),
        ("third", "first"),
        ("third", "second", "first", "third", "second"),
    ],
    ids=" ".join,
)
async def test_no_job_begins_for_a_call_that_was_interrupted_in_the_queue(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    names: tuple[str, ...],
):
    llm = new_llm(run_in_parallel=False)
    scene = await begin(job_harness, scripted_llm, llm, *names)
    before = {name: len(other.payloads) for name, other in scene.others.items()}
    entered = list(scene.worker.entered)

    await scene.worker.queue_frame(InterruptionFrame())

    await scene.stage.until_settled(len(names))
    await scene.worker.flush_pipeline()
    await job_harness.settle()
    assert {name: len(other.payloads) for name, other in scene.others.items()} == before
    assert scene.worker.entered == entered
    assert len(scene.stage.settled) == len(names)
    assert "IN_PROGRESS" not in scene.stage.tool_texts
    assert len(scripted_llm.requests) == 1
    assert not watch(llm)._made


@pytest.mark.parametrize("name", ["background", "protected"])
async def test_a_queued_call_that_interruptions_do_not_cancel_still_begins(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, name: str
):
    llm = new_llm(run_in_parallel=False)
    scene = await begin(job_harness, scripted_llm, llm, "first", name)

    await scene.worker.queue_frame(InterruptionFrame())

    await scene.others[name].started.get()
    scene.others[name].release.set()
    await scripted_llm.wait_for_requests(2)
    await scene.worker.flush_pipeline()
    assert scene.stage.results[-1] == {"text": f"{name} says"}


async def test_a_call_that_waits_behind_a_background_call_is_dropped_by_an_interruption(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    llm = new_llm(run_in_parallel=False)
    scene = await begin(job_harness, scripted_llm, llm, "background", "first")

    await scene.worker.queue_frame(InterruptionFrame())
    await scene.worker.flush_pipeline()
    scene.others["background"].release.set()

    await scene.stage.until_settled(2)
    await scripted_llm.wait_for_requests(2)
    await scene.worker.flush_pipeline()
    assert not scene.asked("first")
    # The worker's turn removes the call from the queue at once, with Pipecat's own text.
    assert scene.stage.results == ["CANCELLED", {"text": "background says"}]


async def test_a_call_that_was_made_after_the_interruption_begins(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    llm = new_llm(run_in_parallel=False)
    again = calls("second", "first")
    scene = await begin(job_harness, scripted_llm, llm, "background", "first", then=again)
    await scene.worker.queue_frame(InterruptionFrame())
    await scene.worker.flush_pipeline()

    # A later generation calls the same tools, behind the dropped calls.
    await scene.stage.say()
    await scripted_llm.wait_for_requests(2)
    for other in scene.others.values():
        other.release.set()

    await scene.others["second"].started.get()
    await scene.others["first"].started.get()
    await scripted_llm.wait_for_requests(3)
    await scene.worker.flush_pipeline()
    assert len(scene.others["first"].payloads) == 1


async def test_a_function_is_dropped_behind_a_tool_of_pipecats_own(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    """No job tool has been called yet, so only the worker can have noticed."""
    began = asyncio.Event()

    async def wait(params: FunctionCallParams) -> None:
        began.set()
        await asyncio.Event().wait()

    @job_tool("first", job="argue")
    async def ask_first(topic: str):
        """Ask the first."""
        return {"topic": topic}

    scripted_llm.reply(ToolCalls(ToolCall("wait", {}), ToolCall("ask_first", {"topic": "AI"})))
    # The tool is registered last, so the other begins after Pipecat has looked for it.
    waiting = FunctionSchema("wait", "Wait.", {}, [], handler=wait)
    talk = Talk(new_llm(run_in_parallel=False), [ask_first, waiting])
    first = Colleague("first")
    await job_harness.start(talk.worker, first)
    await talk.say()
    await began.wait()

    await talk.worker.queue_frame(InterruptionFrame())

    await until_settled(talk, 2)
    assert first.payloads == []
    assert talk.tool_texts[0] == "CANCELLED"
    assert len(scripted_llm.requests) == 1


async def test_a_function_of_a_flow_is_also_dropped(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    @job_tool("first", job="argue")
    async def flow_debate(flow_manager, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    both = (ToolCall("flow_debate", {"topic": "AI"}), ToolCall("flow_debate", {"topic": "cats"}))
    scripted_llm.reply(ToolCalls(*both))
    talk = FlowTalk(new_llm(run_in_parallel=False), flow_debate)
    first = Colleague("first", holds=True)
    await job_harness.start(talk.worker, first)
    await talk.begin()
    await first.started.get()

    await talk.worker.queue_frame(InterruptionFrame())

    await until_settled(talk, 2)
    assert first.payloads == [{"topic": "AI"}]
    assert len(scripted_llm.requests) == 1


async def until_settled(talk: Talk, count: int) -> None:
    """Wait until this many calls have their result in the context."""
    changed = asyncio.Event()
    talk.aggregators.assistant().add_event_handler(
        "on_after_process_frame", lambda *_: changed.set()
    )
    while len(talk.tool_texts) < count or "IN_PROGRESS" in talk.tool_texts:
        await changed.wait()
        changed.clear()
    await talk.worker.flush_pipeline()
