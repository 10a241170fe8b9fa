"""The types that pyright infers in a bot's tools; `make lint` runs pyright over it.

As in ``usage.py``: each ignored error has to occur.
"""

from collections.abc import Mapping
from typing import Any, assert_type

from pipecat.flows import FlowManager, FlowsFunctionSchema, NodeConfig
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs import (
    JobContext,
    JobGroupContext,
    JobOutcome,
    JobTool,
    JobToolProgress,
    LLMWorker,
    ToolCallContext,
    job_tool,
    tool,
    tool_call,
)


def how_far(progress: JobToolProgress) -> str | None:
    assert_type(progress.seconds, float)
    return f"{len(progress.responses)} answers" if progress.responses else None


async def as_text(outcomes: Mapping[str, JobOutcome]) -> str:
    return ", ".join(outcomes)


class Moderator(LLMWorker):
    @job_tool("advocate", "critic", job="argue", timeout=30, say_after=2, say=how_far)
    async def debate(self, topic: str) -> dict[str, Any]:
        """Analyze a topic."""
        return {"topic": topic}

    @job_tool("advocate", render=as_text, on_repeat="refuse", timeout=None)
    async def argue(self, params: FunctionCallParams, rounds: int = 1) -> dict[str, Any]:
        """Argue."""
        return {"rounds": rounds}

    @tool
    async def compare(self, params: FunctionCallParams, topic: str) -> None:
        """Compare."""
        async with tool_call(params) as call:
            assert_type(call, ToolCallContext)
            assert_type(call.job("critic", payload={"topic": topic}), JobContext)
            assert_type(call.job_group("critic", "advocate", timeout=3), JobGroupContext)
            call.job("critic", tiemout=3)  # pyright: ignore[reportCallIssue]
            await call.report({"percent": 10})
            await call.finish("done", run_llm=False)
            await call.finish("done", run_llm="no")  # pyright: ignore[reportArgumentType]

    @job_tool("advocate")  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
    async def no_payload(self, topic: str) -> str:
        """Analyze a topic."""
        return topic


@job_tool("advocate", job="argue", protected=True)
async def debate(topic: str) -> dict[str, Any]:
    """Analyze a topic."""
    return {"topic": topic}


@job_tool("advocate", job="argue")
async def flow_debate(
    flow_manager: FlowManager, topic: str
) -> tuple[dict[str, Any], NodeConfig | None]:
    """Analyze a topic."""
    return {"topic": topic}, None


def a_tool_goes_where_pipecat_takes_tools(moderator: Moderator) -> None:
    assert_type(debate, JobTool)
    assert_type(moderator.debate, JobTool)
    assert_type(flow_debate, FlowsFunctionSchema)
    LLMContext(tools=[debate, moderator.debate])
    node: NodeConfig = {"task_messages": [], "functions": [flow_debate]}
    assert node


def mistakes_are_seen() -> None:
    job_tool(1)  # pyright: ignore[reportArgumentType]
    job_tool("critic", tiemout=3)  # pyright: ignore[reportCallIssue]
    job_tool("critic", timeout="3")  # pyright: ignore[reportArgumentType]
    job_tool("critic", on_repeat="again")  # pyright: ignore[reportArgumentType]
    job_tool("critic", on_failure="ignore")  # pyright: ignore[reportArgumentType]
    job_tool("critic", need="some")  # pyright: ignore[reportArgumentType]
    job_tool("critic", say=7)  # pyright: ignore[reportArgumentType]
