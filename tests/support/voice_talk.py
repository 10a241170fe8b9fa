"""A spoken conversation on virtual time, whose LLMs are behind a bridge or in its own pipeline."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pipecat.bus import BusBridgeProcessor, WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import BotStartedSpeakingFrame, Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobQuestionError, LLMWorker, PipelineWorker, job, job_tool
from pipecat_jobs.conversation import Receipt, ReportChange, ReportState
from pipecat_jobs.testing import ToolCall, ToolCalls, run_virtual
from pipecat_jobs.testing.voice import (
    Answer,
    ScriptedLLM,
    SimulatedUser,
    VoiceOutput,
    turns_of_simulated_user,
)

#: Makes the answer of an LLM from what is new in its context.
Reply = Callable[[Sequence[LLMContextMessage]], Answer]


def find_reports(message: LLMContextMessage) -> list[dict[str, Any]]:
    """Find the reports and updates in a message."""
    assert isinstance(message, dict)
    content = message.get("content")
    if message.get("role") != "developer" or not str(content).startswith('{"type": "report"'):
        return []
    data = json.loads(str(content))
    return [*data.get("reports", ()), *data.get("updates", ())]


def find_news(messages: Sequence[LLMContextMessage]) -> list[LLMContextMessage]:
    """Find the messages after the last words of the assistant."""
    news: list[LLMContextMessage] = []
    for message in messages:
        assert isinstance(message, dict)
        if message.get("role") == "assistant" and message.get("content"):
            news.clear()
        else:
            news.append(message)
    return news


def say_news(messages: Sequence[LLMContextMessage]) -> str:
    """Answer what is new: what the user said, and every report."""
    parts: list[str] = []
    for message in find_news(messages):
        assert isinstance(message, dict)
        if message.get("role") == "user":
            parts.append(f"you said {message.get('content')}")
        parts.extend(f"news {report['report']}" for report in find_reports(message))
    return " and ".join(parts) or "well"


class Host(LLMWorker):
    """An LLM worker of the conversation, which answers as a function says.

    With a talk, its pipeline is that of the conversation; otherwise it is the LLM alone.
    """

    def __init__(
        self, name: str, reply: Reply = say_news, *, talk: "Talk | None" = None, **options: Any
    ):
        self.contexts: list[list[LLMContextMessage]] = []
        """The context of each run."""
        self.tools: list[list[str]] = []
        """The names of the tools in each run."""
        self.reply = reply
        llm = ToolReadingLLM(self)
        if talk is not None:
            options |= {"pipeline": talk.around(llm), "active": True}
        super().__init__(name, llm=llm, **options)
        self.changes: list[ReportChange] = []
        self.running = asyncio.Event()
        """Whether the LLM has run."""

    async def on_report_changed(self, change: ReportChange) -> None:
        self.changes.append(change)

    def answer(self, messages: Sequence[LLMContextMessage]) -> Answer:
        self.contexts.append(list(messages))
        self.running.set()
        return self.reply(messages)


class ToolReadingLLM(ScriptedLLM):
    """Notes the tools of each run."""

    def __init__(self, host: Host):
        super().__init__(host.answer)
        self._host = host

    async def _process_context(self, context: LLMContext) -> None:
        tools = getattr(context.tools, "standard_tools", ())
        names = [getattr(tool, "name", None) or tool.__name__ for tool in tools]
        self._host.tools.append(names)
        await super()._process_context(context)


class Talk:
    """A user and a bot who talk, and the workers behind the bridge."""

    def __init__(
        self,
        bus: WorkerBus,
        *,
        voice: VoiceOutput | None = None,
        user: SimulatedUser | None = None,
        user_params: LLMUserAggregatorParams | None = None,
    ):
        self.user, self.voice = user or SimulatedUser(), voice or VoiceOutput()
        self.context = LLMContext()
        params = user_params or turns_of_simulated_user()
        self.aggregators = LLMContextAggregatorPair(self.context, user_params=params)
        self.bus = bus
        self._begun: dict[int, asyncio.Event] = {}
        self.voice.add_event_handler("on_after_push_frame", self._note_speech)

    def _note_speech(self, _: object, frame: Frame) -> None:
        if isinstance(frame, BotStartedSpeakingFrame):
            begun = self._begun.setdefault(len(self.voice.speeches), asyncio.Event())
            begun.set()

    def around(self, *middle: FrameProcessor) -> Pipeline:
        """Make the pipeline of the conversation around the LLM, or the bridge to it."""
        user, assistant = self.aggregators.user(), self.aggregators.assistant()
        return Pipeline([self.user, user, *middle, self.voice, assistant])

    def bridge(self) -> PipelineWorker:
        """Make the worker that hears the user and speaks, with its LLM behind the bridge."""
        bridge = BusBridgeProcessor(bus=self.bus, worker_name="main")
        return PipelineWorker(self.around(bridge), name="main", idle_timeout_secs=None)

    @asynccontextmanager
    async def running(self, *workers: PipecatBaseWorker) -> AsyncGenerator[None]:
        """Run workers as long as the context is open."""
        runner = WorkerRunner(bus=self.bus, handle_sigint=False)
        await runner.add_workers(*workers)
        run = asyncio.create_task(runner.run(auto_end=False))
        try:
            # On the virtual clock, everything else has happened by then.
            await asyncio.sleep(1)
            assert all(worker.started_at for worker in workers)
            yield
        finally:
            await runner.cancel()
            await run

    async def at(self, seconds: float) -> None:
        """Wait until a time of the clock."""
        await asyncio.sleep(seconds - asyncio.get_running_loop().time())

    async def until_bot_says(self, count: int) -> None:
        """Wait until the bot has begun its speech of this number."""
        begun = self._begun.setdefault(count, asyncio.Event())
        if len(self.voice.speeches) < count:
            await begun.wait()

    @property
    def said(self) -> list[str]:
        """What the bot has said to the end, or to its interruption."""
        return [speech.text for speech in self.voice.speeches]


def states(receipt: Receipt) -> list[str]:
    return [change.state.value for change in receipt.history]


async def settle(*receipts: Receipt) -> list[ReportState]:
    return [await receipt.until_settled() for receipt in receipts]


def play(story: Callable[[], Awaitable[None]]) -> None:
    """Play a story on virtual time, for at most ten minutes of it."""

    async def main() -> None:
        async with asyncio.timeout(600):
            await story()

    run_virtual(main())


class Kitchen(BaseWorker):
    """Cooks for ten seconds; asks for the sauce if it is told to."""

    def __init__(self) -> None:
        super().__init__("kitchen")
        self.sauces: list[object] = []
        """The answers, and the errors that came in their place."""

    @job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> dict[str, object]:
        await asyncio.sleep(10)
        return {"dish": "duck"}

    @job(name="ask")
    async def ask(self, message: BusJobRequestMessage) -> dict[str, object]:
        try:
            sauce = await self.ask_requester("With sauce?", bool)
        except JobQuestionError as error:
            self.sauces.append(error)
            raise
        self.sauces.append(sauce)
        return {"sauce": sauce}


class KitchenTools:
    """The tools of a waiter."""

    @job_tool("kitchen", job="cook", timeout=100, cancel_on_interruption=False)
    async def order(self):
        """Order a duck."""
        return {}

    @job_tool("kitchen", job="ask", timeout=100, cancel_on_interruption=False)
    async def order_carefully(self):
        """Order a duck, and ask about it."""
        return {}


def orders(tool: str) -> Reply:
    """Make a reply that calls a tool once, and answers its question when the user says "yes"."""

    def reply(messages: Sequence[LLMContextMessage]) -> Answer:
        if not any(isinstance(message, dict) and "tool_calls" in message for message in messages):
            return ToolCalls(ToolCall(tool, {}), text="I ask")
        question = find_question(messages)
        if question is not None and "yes" in str(messages[-1]):
            return ToolCalls(ToolCall(question, {"answer": True}), text="I pass it on")
        return say_news(messages)

    return reply


def find_question(messages: Sequence[LLMContextMessage]) -> str | None:
    """Find the name of the tool that answers the question in a context."""
    names = re.findall(r"answer_question_\d+", str(messages))
    return names[-1] if names else None
