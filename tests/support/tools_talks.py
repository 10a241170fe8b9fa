"""Conversations whose tools are functions: in the tools of a context, and in nodes of a flow."""

from enum import Enum
from typing import Any

from pipecat.flows import FlowManager
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair

from pipecat_jobs import PipelineWorker, job_tool
from pipecat_jobs.testing import ScriptedLLMServer
from pipecat_jobs.testing.llm_script import ToolCall


class Style(Enum):
    FORMAL = "formal"
    CASUAL = "casual"


class Talk:
    """A pipeline around an LLM and a context, as in a voice bot."""

    def __init__(
        self,
        llm: Any,
        tools: list[Any],
        worker_class: type[PipecatPipelineWorker] = PipelineWorker,
    ):
        self.context = LLMContext(tools=tools) if tools else LLMContext()
        self.aggregators = LLMContextAggregatorPair(self.context)
        self.llm = llm
        self.worker = worker_class(
            Pipeline([self.aggregators.user(), llm, self.aggregators.assistant()]),
            name="bot",
            idle_timeout_secs=None,
        )

    async def say(self, text: str = "debate AI") -> None:
        message = {"role": "user", "content": text}
        await self.worker.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))

    @property
    def tool_texts(self) -> list[str]:
        return [m["content"] for m in self.context.get_messages() if m["role"] == "tool"]


@job_tool("advocate", job="argue", timeout=30)
async def flow_debate(flow_manager: FlowManager, topic: str, style: Style = Style.FORMAL):
    """Analyze a topic.

    Args:
        topic: The topic to debate.
    """
    payload = {"topic": topic, "style": style.value}
    if topic == "broken":
        raise ValueError("no such topic")
    if topic == "onwards":
        return payload, {
            "name": "after",
            "task_messages": [{"role": "developer", "content": "It is over."}],
            "functions": [],
        }
    return payload


class FlowTalk(Talk):
    """A conversation that a flow controls."""

    def __init__(self, llm: Any, function: Any = flow_debate, **keywords: Any):
        super().__init__(llm, [], **keywords)
        self.flow = FlowManager(llm=llm, context_aggregator=self.aggregators, worker=self.worker)
        self.function = function

    async def begin(self) -> None:
        await self.flow.initialize(
            {
                "name": "start",
                "task_messages": [{"role": "developer", "content": "Have it debated."}],
                "functions": [self.function],
            }
        )


def calls_flow_debate(server: ScriptedLLMServer, topic: str = "AI", **more: str) -> None:
    server.reply(ToolCall("flow_debate", {"topic": topic, **more}), "Summary.")
