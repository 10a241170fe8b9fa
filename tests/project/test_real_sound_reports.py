"""A report and a user who speaks: real speech, real voice activity detection."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import Frame, TranscriptionFrame, TTSTextFrame, UserStartedSpeakingFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from support.sentences import no_rules_of_sentences
from support.sound import Microphone, Speaker, Voice, duration, speech

from pipecat_jobs import LLMWorker, Receipt, ReportChange, ReportState
from pipecat_jobs.testing import JobHarness
from pipecat_jobs.testing.voice import ScriptedLLM

__all__ = ["no_rules_of_sentences"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="its harness waits until nothing moves, as sound does"
)

FIRST = "The duck takes forty minutes."
#: Pipecat knows what was heard by the sentence: the speech service has no times of words.
NEWS = f"{FIRST} It comes with potatoes and red cabbage, and with sauce or without it, as you like."
WORDS = "Please wait a moment, because I have to talk to somebody else on the telephone"


ANSWER = "Of course I wait."


class Bot(LLMWorker):
    """Answers the user, and tells its reports."""

    def __init__(self) -> None:
        self.microphone, self.voice, self.speaker = Microphone(), Voice(), Speaker()
        #: The texts that the LLM has generated.
        self.answers: list[str] = []
        stop = SpeechTimeoutUserTurnStopStrategy()
        turns = LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(), user_turn_strategies=UserTurnStrategies(stop=[stop])
        )
        user, assistant = LLMContextAggregatorPair(LLMContext(), user_params=turns)
        llm = ScriptedLLM(self._answer, latency=0, pace=0)
        #: The frames that the LLM, and the aggregator behind the speech, have seen.
        self.seen: defaultdict[type[Frame], asyncio.Event] = defaultdict(asyncio.Event)
        for processor in (llm, assistant):
            processor.add_event_handler("on_before_process_frame", self._see)
        pipeline = [self.microphone, user, llm, self.voice, self.speaker, assistant]
        super().__init__("bot", llm=llm, pipeline=Pipeline(pipeline), active=True)

    def _answer(self, messages: Sequence[LLMContextMessage]) -> str:
        """Say what is new since the bot's last words."""
        roles = [cast("Any", message)["role"] for message in messages]
        own = [number for number, role in enumerate(roles) if role == "assistant"]
        new = roles[own[-1] + 1 if own else 0 :]
        texts = {"user": ANSWER, "developer": NEWS}
        self.answers.append(" ".join(texts[role] for role in texts if role in new))
        return self.answers[-1]

    async def _see(self, _: FrameProcessor, frame: Frame) -> None:
        self.seen[type(frame)].set()

    async def hear_words(self, pcm: bytes) -> None:
        """Hear the user say WORDS, without speech recognition."""
        await self.microphone.say(pcm)
        words = TranscriptionFrame(WORDS, "user", time_now_iso8601())
        await self.microphone.push_frame(words)


@pytest.fixture
async def bot(job_harness: JobHarness) -> AsyncIterator[Bot]:
    bot = Bot()
    await job_harness.start(bot)
    yield bot
    # The microphone never rests, and a busy machine is behind it.
    await job_harness.cancel(bot)


async def until(receipt: Receipt, state: ReportState) -> ReportChange:
    return await anext(change async for change in receipt if change.state is state)


@pytest.mark.slow
async def test_a_report_waits_for_the_end_of_the_users_speech(bot: Bot):
    speaking = asyncio.create_task(bot.hear_words(await speech(WORDS)))
    await bot.seen[UserStartedSpeakingFrame].wait()

    receipt = await bot.report(NEWS)
    await speaking
    assert (receipt.state, bot.answers, bot.speaker.played) == (ReportState.WAITING, [], 0)

    # The answer to the user has it.
    assert await receipt.until_settled() is ReportState.COVERED
    assert bot.answers == [f"{ANSWER} {NEWS}"]
    assert bot.speaker.played == pytest.approx(bot.voice.spoken, abs=0.5)


async def test_a_report_that_the_user_talks_over_comes_again_and_is_said_once(bot: Bot):
    words, news = await speech(WORDS), duration(await speech(NEWS))
    receipt = await bot.report(NEWS)
    await until(receipt, ReportState.SPEAKING)
    await bot.seen[TTSTextFrame].wait()

    speaking = asyncio.create_task(bot.hear_words(words))
    cut = await until(receipt, ReportState.INTERRUPTED)
    assert cut.heard == FIRST
    played = bot.speaker.played
    await speaking

    # The bot was silent as long as the user spoke.
    assert bot.speaker.played == pytest.approx(played, abs=0.1)
    assert played < news - 1

    assert await receipt.until_settled() is ReportState.SAID
    assert [change.state for change in receipt.history] == [
        ReportState.WAITING,
        *(ReportState.OFFERED, ReportState.SPEAKING, ReportState.INTERRUPTED),
        *(ReportState.OFFERED, ReportState.SPEAKING, ReportState.SAID),
    ]
    assert bot.answers == [NEWS, ANSWER, NEWS]
    # All that was generated after the interruption was spoken to its end.
    assert bot.speaker.played - played == pytest.approx(bot.voice.spoken - news, abs=0.5)
