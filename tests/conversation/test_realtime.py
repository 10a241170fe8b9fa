"""Reports of a bot whose LLM is a realtime service."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from pipecat.bus import AsyncQueueBus
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMServiceMetadataFrame,
    LLMTextFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.llm_service import FunctionCallParams, LLMService
from support.voice_talk import Talk, find_reports, play, states

from pipecat_jobs import InvalidJobError, LLMWorker
from pipecat_jobs._llm.watch import watch
from pipecat_jobs.conversation import FloorHolder, ReportState
from pipecat_jobs.testing.voice import ScriptedLLM
from pipecat_jobs.tools.call import ToolCallContext
from pipecat_jobs.tools.options import JobToolOptions
from pipecat_jobs.tools.reporting import DirectReporting, make_reporting


class RealtimeLLM(ScriptedLLM):
    """Answers the user's voice by itself, and messages when the context comes back upstream.

    It treats frames as Pipecat's service for OpenAI's realtime API does.
    """

    def __init__(self, *, latency: float = 1.0):
        super().__init__(lambda _: "")
        self._latency = latency
        self._context_seen = self._owes_answer = False
        self._items: list[LLMContextMessage] = []
        """What the model has been given since its last answer."""
        self.answers = 0
        self._answering: asyncio.Task[None] | None = None

    def service_metadata_frame(self) -> LLMServiceMetadataFrame:
        return LLMServiceMetadataFrame(service_name=self.name, is_realtime_service=True)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await LLMService.process_frame(self, frame, direction)
        match frame:
            case LLMMessagesAppendFrame():
                self._items.extend(frame.messages)
                self._owes_answer = True
            case LLMContextFrame():
                if direction is FrameDirection.UPSTREAM and self._owes_answer:
                    self._answer_soon()
                return
            case UserStoppedSpeakingFrame():
                # The service detects the end of the user's turn.
                self._items.append({"role": "user", "content": "question"})
                self._answer_soon()
            case InterruptionFrame() if self._answering is not None:
                await self.cancel_task(self._answering)
                self._answering = None
            case _:
                pass
        await self.push_frame(frame, direction)

    def _answer_soon(self) -> None:
        self._owes_answer = False
        self._answering = self.create_task(self._give_answer())

    async def _give_answer(self) -> None:
        await asyncio.sleep(self._latency)
        self.answers += 1
        items, self._items = self._items, []
        parts = [f"news {report['report']}" for item in items for report in find_reports(item)]
        if any(isinstance(item, dict) and item.get("role") == "user" for item in items):
            parts.insert(0, "the answer")
        await self.push_frame(LLMFullResponseStartFrame())
        await self.push_frame(TTSStartedFrame())
        for word in " and ".join(parts).split():
            # For the client; the text of the speech goes into the context.
            text = LLMTextFrame(f"{word} ")
            text.append_to_context = False
            text.skip_tts = True
            await self.push_frame(text)
            await self.push_frame(TTSTextFrame(word, "word"))
        await self.push_frame(TTSStoppedFrame())
        await self.push_frame(LLMFullResponseEndFrame())


def converse(story: Callable[[Talk, LLMWorker], Awaitable[None]]) -> None:
    async def main() -> None:
        talk, llm = Talk(AsyncQueueBus()), RealtimeLLM()
        bot = LLMWorker("bot", llm=llm, pipeline=talk.around(llm), active=True)
        async with talk.running(bot):
            await story(talk, bot)

    play(main)


LONG = "the very long report about the order"


def test_a_report_is_said_in_silence():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        receipt = await bot.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert states(receipt) == ["waiting", "offered", "speaking", "said"]
        await asyncio.sleep(30)
        assert talk.said == ["news ready"]
        assert bot.floor.holder is None

    converse(story)


def test_the_text_of_an_answer_counts_once():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        await bot.report("ready")
        await talk.until_bot_says(1)
        (run,) = watch(bot.llm).runs._open
        assert run.text.split() == ["news", "ready"]

    converse(story)


def test_a_report_waits_for_the_user_and_for_the_answer():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        saying = asyncio.create_task(talk.user.say("a long question that takes a while"))
        await asyncio.sleep(0.7)
        receipt = await bot.report("ready")
        await saying
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["the answer", "news ready"]

    converse(story)


def test_a_report_that_the_user_cuts_off_comes_again():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        receipt = await bot.report(LONG)
        await talk.until_bot_says(1)
        await asyncio.sleep(1)
        await talk.user.say("wait a moment please")
        assert await receipt.until_settled() is ReportState.SAID
        assert states(receipt) == [
            "waiting", "offered", "speaking", "interrupted", "offered", "speaking", "said"
        ]  # fmt: skip
        assert receipt.history[3].heard == "news the very"
        assert talk.said == ["news the very", "the answer", f"news {LONG}"]

    converse(story)


def test_a_report_that_the_service_has_before_the_user_speaks_is_said_once():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        receipt = await bot.report("ready")
        await asyncio.sleep(0.2)
        await talk.user.say("wait a moment please")
        assert await receipt.until_settled() is ReportState.SAID
        await asyncio.sleep(30)
        assert talk.said == ["the answer and news ready"]

    converse(story)


def test_a_service_that_finds_out_itself_that_the_user_speaks():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        receipt = await bot.report(LONG)
        await talk.until_bot_says(1)
        await asyncio.sleep(1)
        await bot.llm.broadcast_frame(UserStartedSpeakingFrame)
        await bot.llm.broadcast_interruption()
        await asyncio.sleep(0.1)
        assert bot.floor.holder is FloorHolder.USER
        await asyncio.sleep(5)
        assert states(receipt)[-1] == "interrupted"
        await bot.llm.broadcast_frame(UserStoppedSpeakingFrame)
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said[-1] == f"news {LONG}"

    converse(story)


def test_the_floor_is_free_soon_if_the_service_does_not_answer_the_user():
    async def story(talk: Talk, bot: LLMWorker) -> None:
        for frame in (UserStartedSpeakingFrame, UserStoppedSpeakingFrame):
            await bot.llm.broadcast_frame(frame)
        await asyncio.sleep(0.1)
        assert bot.floor.holder is FloorHolder.LLM
        await bot.floor.until_free()
        assert bot.floor.holder is None

    converse(story)


SERVICES = {
    "pipecat.services.inworld.realtime.llm": "InworldRealtimeLLMService",
    "pipecat.services.ultravox.llm": "UltravoxRealtimeLLMService",
}


@pytest.fixture(params=list(SERVICES))
def deaf_service(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[RealtimeLLM]:
    """A class of services that take no messages on any Pipecat."""

    class Deaf(RealtimeLLM):
        pass

    module = ModuleType(request.param)
    setattr(module, SERVICES[request.param], Deaf)
    monkeypatch.setitem(sys.modules, request.param, module)
    return Deaf


async def test_report_refuses_a_service_that_takes_no_messages(deaf_service: type[RealtimeLLM]):
    worker = LLMWorker("bot", llm=deaf_service())

    with pytest.raises(InvalidJobError, match=r"takes no message.*newer Pipecat"):
        await worker.report("ready")


def test_a_tool_in_the_background_reports_at_once_to_such_a_service(
    deaf_service: type[RealtimeLLM],
):
    params = cast("FunctionCallParams", SimpleNamespace(llm=deaf_service()))
    options = SimpleNamespace(cancel_on_interruption=False, report="in_silence")
    call = cast("ToolCallContext", SimpleNamespace())

    reporting = make_reporting(call, params, cast("JobToolOptions", options))

    assert type(reporting) is DirectReporting
