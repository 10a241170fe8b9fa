"""Job tools that are functions: in a context's tools, and in the nodes of a flow."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipecat.flows import FlowManager
from pipecat.frames.frames import (
    EndFrame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMSetToolsFrame,
)
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.services.llm_service import FunctionCallParams
from support.tools_stage import Colleague, NewLLM, calls_debate, new_llm, tool_results, tool_schema
from support.tools_talks import FlowTalk, Style, Talk, calls_flow_debate

from pipecat_jobs import InvalidJobError, job_tool
from pipecat_jobs._pipecat.schemas import FunctionSchema
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCalls
from pipecat_jobs.testing.llm_script import ToolCall

__all__ = ["new_llm"]


@job_tool("advocate", job="argue")
async def debate(topic: str, style: Style = Style.FORMAL):
    """Analyze a topic.

    Args:
        topic: The topic to debate.
    """
    return {"topic": topic, "style": style.value}


SCHEMA = {
    "name": "debate",
    "description": "Analyze a topic.",
    "parameters": {
        "type": "object",
        "properties": {
            "topic": {"type": "string", "description": "The topic to debate."},
            "style": {"type": "string", "enum": ["formal", "casual"], "default": "formal"},
        },
        "required": ["topic"],
    },
}


# In the tools of a context


async def given_at_the_start(talk: Talk) -> None:
    await talk.say()


async def set_later(talk: Talk) -> None:
    await talk.worker.queue_frame(LLMSetToolsFrame(tools=[debate]))
    await talk.say()


@pytest.mark.parametrize(("tools", "begin"), [([debate], given_at_the_start), ([], set_later)])
async def test_a_function_is_a_tool_of_any_worker_with_jobs(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    tools: list[Any],
    begin: Callable[[Talk], Awaitable[None]],
):
    calls_debate(scripted_llm)
    talk, advocate = Talk(new_llm(), tools), Colleague("advocate")
    await job_harness.start(talk.worker, advocate)

    await begin(talk)

    first, second = await scripted_llm.wait_for_requests(2)
    assert tool_schema(first) == SCHEMA
    assert advocate.payloads == [{"topic": "AI", "style": "formal"}]
    assert tool_results(second) == [{"text": "advocate says"}]
    await talk.worker.flush_pipeline()


async def test_a_function_may_take_the_calls_params(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    @job_tool("advocate", job="argue")
    async def debate(params: FunctionCallParams, topic: str):
        """Analyze a topic."""
        return {"call": params.tool_call_id, "topic": topic}

    calls_debate(scripted_llm)
    talk, advocate = Talk(new_llm(), [debate]), Colleague("advocate")
    await job_harness.start(talk.worker, advocate)
    await talk.say()

    await scripted_llm.wait_for_requests(2)
    assert advocate.payloads == [{"call": "call_1", "topic": "AI"}]
    await talk.worker.flush_pipeline()


async def test_a_method_of_any_object_is_a_tool(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Bot:
        def __init__(self) -> None:
            self.user = "Ann"

        @job_tool("advocate", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic, "user": self.user}

    calls_debate(scripted_llm)
    talk, advocate = Talk(new_llm(), [Bot().debate]), Colleague("advocate")
    await job_harness.start(talk.worker, advocate)
    await talk.say()

    await scripted_llm.wait_for_requests(2)
    assert advocate.payloads == [{"topic": "AI", "user": "Ann"}]
    await talk.worker.flush_pipeline()


@pytest.mark.parametrize("frame", [InterruptionFrame, EndFrame])
async def test_a_call_of_a_function_is_cancelled_like_a_call_of_a_method(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, frame: Any
):
    calls_debate(scripted_llm)
    talk, advocate = Talk(new_llm(), [debate]), Colleague("advocate", holds=True)
    await job_harness.start(talk.worker, advocate)
    await talk.say()
    await advocate.started.get()

    await talk.worker.queue_frame(frame())

    await advocate.stopped.get()
    await job_harness.settle()
    await job_harness.end(talk.worker)
    assert len(scripted_llm.requests) == 1
    assert "IN_PROGRESS" not in talk.tool_texts


async def test_a_function_on_a_plain_pipecat_worker_raises_an_error_that_says_what_to_import(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[Any],
):
    calls_debate(scripted_llm)
    talk = Talk(new_llm(), [debate], PipecatPipelineWorker)
    await job_harness.start(talk.worker)
    await talk.say()

    _, second = await scripted_llm.wait_for_requests(2)
    failure = {"error": "debate is not set up correctly and cannot be used."}
    assert tool_results(second) == [failure]
    (record,) = [r for r in job_log if r.message.startswith("tool debate raised")]
    assert "import PipelineWorker" in str(record.exception)
    await talk.worker.flush_pipeline()


def test_a_function_is_a_schema_with_its_handler():
    assert isinstance(debate, FunctionSchema)
    assert debate.handler is debate


# In a flow


async def test_a_function_of_a_flow_asks_its_jobs_and_stays_at_its_node(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls_flow_debate(scripted_llm, style="casual")
    talk, advocate = FlowTalk(new_llm()), Colleague("advocate")
    await job_harness.start(talk.worker, advocate)

    await talk.begin()

    first, second = await scripted_llm.wait_for_requests(2)
    assert tool_schema(first, "flow_debate") == SCHEMA | {"name": "flow_debate"}
    assert advocate.payloads == [{"topic": "AI", "style": "casual"}]
    assert tool_results(second) == [{"text": "advocate says"}]
    assert talk.flow.current_node == "start"
    await talk.worker.flush_pipeline()


async def test_a_function_of_a_flow_may_lead_to_the_next_node(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls_flow_debate(scripted_llm, "onwards")
    talk = FlowTalk(new_llm())
    await job_harness.start(talk.worker, Colleague("advocate"))

    await talk.begin()

    _, second = await scripted_llm.wait_for_requests(2)
    assert second.mentions("It is over.")
    assert tool_results(second) == [{"text": "advocate says"}]
    assert talk.flow.current_node == "after"
    await talk.worker.flush_pipeline()


@pytest.mark.parametrize(
    ("arguments", "explanation"),
    [
        ({"topic": "broken"}, "flow_debate had an internal error (ValueError)."),
        ({"topic": "AI", "style": "rude"}, "'style' is 'rude': Input should be"),
    ],
)
async def test_the_failure_of_a_function_of_a_flow_is_reported_to_the_llm(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    arguments: dict[str, str],
    explanation: str,
):
    calls_flow_debate(scripted_llm, **arguments)
    talk, advocate = FlowTalk(new_llm()), Colleague("advocate")
    await job_harness.start(talk.worker, advocate)

    await talk.begin()

    _, second = await scripted_llm.wait_for_requests(2)
    (result,) = tool_results(second)
    assert explanation in result["error"]
    assert advocate.payloads == []
    await talk.worker.flush_pipeline()


async def test_an_interruption_cancels_a_call_of_a_flow(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    """By the default of Pipecat Flows the call would go on."""
    calls_flow_debate(scripted_llm)
    talk, advocate = FlowTalk(new_llm()), Colleague("advocate", holds=True)
    await job_harness.start(talk.worker, advocate)
    await talk.begin()
    await advocate.started.get()

    await talk.worker.queue_frame(InterruptionFrame())

    await advocate.stopped.get()
    await talk.worker.flush_pipeline()
    await job_harness.settle()
    assert talk.tool_texts == ["CANCELLED"]
    assert len(scripted_llm.requests) == 1


async def test_the_end_of_the_session_of_a_flow_stops_the_jobs_and_runs_no_llm(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls_flow_debate(scripted_llm)
    talk, advocate = FlowTalk(new_llm()), Colleague("advocate", holds=True)
    results: list[FunctionCallResultFrame] = []

    def keep(_: object, frame: object) -> None:
        if isinstance(frame, FunctionCallResultFrame):
            results.append(frame)

    talk.llm.add_event_handler("on_before_push_frame", keep)
    await job_harness.start(talk.worker, advocate)
    await talk.begin()
    await advocate.started.get()

    await talk.worker.stop()

    await advocate.stopped.get()
    await job_harness.settle()
    assert results
    assert all(frame.properties and frame.properties.run_llm is False for frame in results)
    await job_harness.cancel(talk.worker)
    assert len(scripted_llm.requests) == 1


@pytest.mark.not_on(
    "redis",
    "pubsub",
    reason="the first call never begins",
)
async def test_a_replaced_call_of_a_flow_is_settled_without_a_comment(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    @job_tool("advocate", job="argue", on_repeat="replace")
    async def flow_debate(flow_manager, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    call = ToolCall("flow_debate", {"topic": "AI"})
    scripted_llm.reply(ToolCalls(call, call), "Summary.")
    talk = FlowTalk(new_llm(), flow_debate)
    advocate = Colleague("advocate", holds=True)
    await job_harness.start(talk.worker, advocate)
    await talk.begin()

    await advocate.stopped.get()
    await job_harness.settle()
    advocate.release.set()

    _, second = await scripted_llm.wait_for_requests(2)
    replaced, responded = tool_results(second)
    assert list(replaced) == ["stopped"]
    assert responded == {"text": "advocate says"}
    await talk.worker.flush_pipeline()


@pytest.mark.parametrize(
    "options",
    [
        {"say_after": 1},
        {"cancel_on_interruption": False, "progress": True},
        {"cancel_on_interruption": False, "cancellable_by_llm": True},
    ],
)
def test_options_that_a_flow_cannot_serve_are_refused(options: dict[str, Any]):
    async def debate(flow_manager: FlowManager, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    with pytest.raises(InvalidJobError, match="is a function of a flow, where"):
        job_tool("advocate", **options)(debate)


def test_a_method_cannot_be_a_function_of_a_flow():
    async def debate(self: object, flow_manager: FlowManager, topic: str):
        """Analyze a topic."""
        return {"topic": topic}

    with pytest.raises(InvalidJobError, match="make it a function"):
        job_tool("advocate")(debate)


def test_pipecat_flows_is_not_imported_for_other_tools():
    import subprocess
    import sys

    code = (
        "import sys; from pipecat_jobs import job_tool\n"
        "@job_tool('a')\nasync def f(x: int):\n    'Do.'\n"
        "print('pipecat.flows' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"
