"""A question about a job of a tool goes to the requester of the turn's job."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.services.llm_service import FunctionCallParams
from support.llm_workers import NewLLM, new_llm

from pipecat_jobs import BaseWorker, JobQuestion, LLMContextWorker, job, job_tool, tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="Pipecat's network buses drop what an answer needs"
)


class Pantry(BaseWorker):
    @job(name="fetch")
    async def fetch(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {"sauce": await self.ask_requester("With sauce?", bool)}


class Cook(LLMContextWorker):
    @job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {"text": await self.llm_turn("Cook a duck.")}

    @tool
    async def season(self, params: FunctionCallParams):
        """Season the duck."""
        salted = await self.ask_requester("With sauce?", bool)
        await params.result_callback({"salted": salted})

    @job_tool("pantry", job="fetch")
    async def fetch(self, what: str):
        """Fetch something from the pantry."""
        return {"what": what}


class Waiter(BaseWorker):
    async def on_job_question(self, question: JobQuestion) -> object:
        assert (question.text, question.worker) == ("With sauce?", "cook")
        return True


async def test_a_question_of_a_tools_job_reaches_the_requester_of_the_turns_job(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("fetch", {"what": "plums"}), "Duck with sauce.")
    waiter = Waiter("waiter")
    await job_harness.start(waiter, Cook("cook", llm=new_llm("You cook.")), Pantry("pantry"))
    async with asyncio.timeout(100):
        response = await waiter.job("cook", name="cook")
    assert response == {"text": "Duck with sauce."}
    assert '"sauce": true' in str(scripted_llm.requests[1].messages)


async def test_a_tool_asks_the_requester_of_the_turns_job(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("season", {}), "A salty duck.")
    waiter = Waiter("waiter")
    await job_harness.start(waiter, Cook("cook", llm=new_llm("You cook.")), Pantry("pantry"))
    async with asyncio.timeout(100):
        assert await waiter.job("cook", name="cook") == {"text": "A salty duck."}
    assert '"salted": true' in str(scripted_llm.requests[1].messages)
