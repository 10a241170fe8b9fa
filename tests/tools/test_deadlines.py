"""The jobs of a tool inherit the tool's timeout, and that of the job whose turn called it."""

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.services.llm_service import FunctionCallParams
from support.llm_workers import NewLLM, new_llm

from pipecat_jobs import (
    BaseWorker,
    LLMContextWorker,
    job,
    job_deadline,
    job_tool,
    tool,
    tool_call,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]

#: Seconds; longer than any test takes.
LONG = 1000.0


class Library(BaseWorker):
    def __init__(self) -> None:
        super().__init__("library")
        self.left: list[float | None] = []

    @job(name="find")
    async def find(self, message: BusJobRequestMessage) -> dict:
        self.left.append(job_deadline())
        return {"shelf": 7}


class Host(LLMContextWorker):
    left: float | None = None

    @tool(timeout_secs=LONG)
    async def with_timeout(self, params: FunctionCallParams):
        """Look a book up."""
        async with tool_call(params) as call:
            await call.finish(await call.job("library", name="find"))

    @tool
    async def without_timeout(self, params: FunctionCallParams):
        """Look a book up."""
        async with tool_call(params) as call:
            await call.finish(await call.job("library", name="find"))
        self.left = job_deadline()

    @job_tool("library", job="find", timeout=LONG)
    async def job_tool(self):
        """Look a book up."""
        found = await self.job("library", name="find")
        return {"found": found}

    @job(name="turn")
    async def turn(self, message: BusJobRequestMessage) -> dict:
        return {"text": await self.llm_turn("Find it.")}


async def run(
    harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, tool_name: str
) -> tuple[Host, Library]:
    server.reply(ToolCall(tool_name), "On shelf 7.")
    host, library = Host("host", llm=new_llm("You look up."), active=True), Library()
    await harness.start(host, library)
    return host, library


@pytest.mark.not_on("pubsub", reason="it carries none of our headers")
async def test_a_job_of_a_tool_call_inherits_the_timeout_that_pipecat_has_for_the_tool(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    host, library = await run(job_harness, scripted_llm, new_llm, "with_timeout")
    await host.llm_turn("Find it.")
    assert len(library.left) == 1
    assert LONG / 2 < (library.left[0] or 0) <= LONG + 1


async def test_a_job_of_a_tool_without_a_timeout_has_no_deadline(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    host, library = await run(job_harness, scripted_llm, new_llm, "without_timeout")
    await host.llm_turn("Find it.")
    assert library.left == [None]


@pytest.mark.not_on("pubsub", reason="it carries none of our headers")
async def test_the_jobs_of_the_function_of_a_job_tool_inherit_its_timeout(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    host, library = await run(job_harness, scripted_llm, new_llm, "job_tool")
    await host.llm_turn("Find it.")
    assert len(library.left) == 2
    assert all(LONG / 2 < (left or 0) <= LONG for left in library.left)


@pytest.mark.not_on("pubsub", reason="it carries none of our headers")
@pytest.mark.parametrize("tool_name", ["with_timeout", "without_timeout"])
async def test_a_tool_in_the_turn_of_a_job_inherits_what_is_left_of_the_job(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, tool_name: str
):
    host, library = await run(job_harness, scripted_llm, new_llm, tool_name)
    requester = BaseWorker("requester")
    await job_harness.start(requester)
    await requester.job("host", name="turn", timeout=LONG / 2)
    assert 0 < (library.left[0] or 0) <= LONG / 2
    if tool_name == "without_timeout":
        assert host.left is not None, "the turn's deadline holds after the call has its result"
