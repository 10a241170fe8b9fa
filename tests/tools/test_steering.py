"""``@job_tool(on_repeat="steer")``: a second call steers the jobs of the first."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.tools_stage import Colleague, NewLLM, Stage, new_llm, raise_stage, tool_results

from pipecat_jobs import BaseWorker, JobSteer, LLMContextWorker, job, job_steers, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="Pipecat's network buses drop what a steer is attached to"
)


class Mechanic(BaseWorker):
    """Inspects one part after the other until there is none left."""

    def __init__(self, name: str = "garage") -> None:
        super().__init__(name)
        self.steered: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @job(name="inspect")
    async def inspect(self, message: BusJobRequestMessage) -> dict[str, Any]:
        assert message.payload is not None
        parts = [message.payload["part"]]
        async for steer in job_steers():
            self.steered.put_nowait(steer.data)
            if steer.data["part"] == "paint":
                steer.refuse("this garage does not paint")
            elif steer.data["part"] == "none":
                break
            else:
                parts.append(steer.data["part"])
        return {"inspected": parts}


class Stubborn(Colleague):
    async def on_job_steered(self, steer: JobSteer) -> None:
        steer.refuse("no time")


class Host(LLMContextWorker):
    @job_tool(
        "garage",
        job="inspect",
        on_repeat="steer",
        repeat_by="tool",
        cancel_on_interruption=False,
        report="at_once",
    )
    async def inspect(self, part: str):
        """Have a part of the car inspected."""
        return {"part": part}

    @job_tool("garage", "advocate", job="argue", on_repeat="steer", repeat_by="tool")
    async def debate(self, topic: str):
        """Have a topic debated."""
        return {"topic": topic}


async def start(
    harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, *workers: BaseWorker
) -> Stage:
    return await raise_stage(harness, Host("host", llm=new_llm(), active=True), *workers)


def find(*parts: str) -> ToolCalls:
    return ToolCalls(*(ToolCall("inspect", {"part": part}) for part in parts))


async def test_a_second_call_steers_the_jobs_of_the_first(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage = await start(job_harness, scripted_llm, new_llm, Mechanic())
    scripted_llm.reply(find("engine"), find("brakes"), "Noted.", find("paint"), "They do not.")
    await stage.say("inspect the engine")
    await stage.until(lambda: bool(stage.worker.open_jobs))
    for count, said in enumerate(["and the brakes", "and paint it"], 1):
        await stage.say(said)
        await stage.until_settled(count)
        await scripted_llm.wait_for_requests(1 + 2 * count)
        await stage.worker.flush_pipeline()
    steered, refused = stage.results
    assert "takes this into account" in steered["steered"]
    assert refused == {
        "error": "The running call of inspect does not take this: this garage does not paint"
    }

    scripted_llm.reply(find("none"), "Done.", "Done.")
    await stage.say("that is all")
    await stage.until_settled(4)

    assert {"inspected": ["engine", "brakes"]} in stage.results
    await job_harness.settle()
    assert stage.worker.open_jobs == ()


async def test_a_call_after_the_jobs_have_ended_runs_as_a_new_one(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    mechanic = Mechanic()
    scripted_llm.reply(find("engine", "none"), "Done.", find("lights", "none"), "Done.")
    stage = await start(job_harness, scripted_llm, new_llm, mechanic)
    for count in (2, 4):
        await stage.say()
        await stage.until_settled(count)
    results = [result for result in stage.results if "inspected" in result]
    assert results == [{"inspected": ["engine"]}, {"inspected": ["lights"]}]


async def test_a_call_is_refused_when_no_worker_takes_it(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    workers = Stubborn("garage", holds=True), Stubborn("advocate", holds=True)
    scripted_llm.reply(
        ToolCalls(ToolCall("debate", {"topic": "AI"}), ToolCall("debate", {"topic": "cats"})),
        "Summary.",
    )
    stage = await start(job_harness, scripted_llm, new_llm, *workers)
    await stage.say()
    await stage.until_settled()
    assert stage.results == [
        {"error": "The running call of debate does not take this: no time; no time"}
    ]
    for worker in workers:
        worker.release.set()
    await scripted_llm.wait_for_requests(2)
    assert tool_results(scripted_llm.requests[1])[0]["answers"] == {
        "garage": {"text": "garage says"},
        "advocate": {"text": "advocate says"},
    }
    await job_harness.end(stage.worker)
