"""A spoken conversation without sound: the order of frames, the pace of words, interruptions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    FunctionCallResultFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
    TTSSpeakFrame,
    TTSTextFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import LLMWorker, tool

from pipecat_jobs import InvalidJobError
from pipecat_jobs.testing import JobHarness, ToolCall, ToolCalls, run_virtual
from pipecat_jobs.testing.voice import (
    Answer,
    ScriptedLLM,
    SimulatedUser,
    VoiceOutput,
    turns_of_simulated_user,
)

PACE = 0.3


class Listener(FrameProcessor):
    """Records the frames behind the voice, and when they came."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[float, Frame]] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM:
            self.frames.append((asyncio.get_running_loop().time(), frame))
        await self.push_frame(frame, direction)

    def names(self, *kinds: type[Frame]) -> list[str]:
        return [
            frame.text if isinstance(frame, TTSTextFrame) else type(frame).__name__
            for _, frame in self.frames
            if isinstance(frame, kinds)
        ]


class Bot(LLMWorker):
    """A bot whose LLM gives one answer after the other."""

    def __init__(self, answers: list[Answer]):
        self.user, self.voice, self.listener = SimulatedUser(pace=PACE), VoiceOutput(), Listener()
        self.context = LLMContext()
        aggregators = LLMContextAggregatorPair(self.context, user_params=turns_of_simulated_user())
        llm = ScriptedLLM(lambda _: answers.pop(0), latency=0.4, pace=0.02)
        self.called: list[int] = []
        parts = [
            self.user,
            aggregators.user(),
            llm,
            self.voice,
            self.listener,
            aggregators.assistant(),
        ]
        super().__init__("bot", llm=llm, pipeline=Pipeline(parts), active=True)

    @tool
    async def order(self, params: FunctionCallParams, number: int) -> None:
        """Order a dish.

        Args:
            params: How Pipecat calls a tool.
            number: Which one.
        """
        self.called.append(number)
        await params.result_callback({"ready": number})

    @property
    def words(self) -> list[object]:
        return [message.get("content") for message in self.context.get_messages()]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportAttributeAccessIssue]


@asynccontextmanager
async def running(*answers: Answer) -> AsyncIterator[Bot]:
    async with JobHarness() as harness:
        bot = Bot(list(answers))
        await harness.start(bot)
        await bot.flush_pipeline()
        yield bot


def play(story: Callable[[Bot], Awaitable[None]], *answers: Answer) -> Bot:
    async def main() -> Bot:
        async with running(*answers) as bot:
            await story(bot)
        return bot

    return run_virtual(main())


def test_the_bot_answers_the_user_word_by_word_at_its_pace():
    async def story(bot: Bot) -> None:
        await bot.user.say("hello there")
        await bot.user.until_bot_silent(5)

    bot = play(story, "I am well")

    (user,), (speech,) = bot.user.speeches, bot.voice.speeches
    assert (user.text, user.began, user.ended) == ("hello there", 0, pytest.approx(2 * PACE))
    # The voice activity ends 0.2 s after the words, and Pipecat's strategy waits for 0.6 s more.
    assert speech.began == pytest.approx(2 * PACE + 0.2 + 0.6 + 0.4 + 0.2)
    assert speech.ended == pytest.approx(speech.began + 3 * PACE)
    assert (speech.text, speech.interrupted) == ("I am well", False)
    assert bot.words == ["hello there", "I am well"]


def test_other_frames_wait_behind_the_speech():
    async def story(bot: Bot) -> None:
        await bot.voice.queue_frame(TTSSpeakFrame("one two"))
        await bot.voice.queue_frame(LLMMessagesAppendFrame([]))
        await asyncio.sleep(2)

    bot = play(story)

    kinds = (TTSTextFrame, LLMMessagesAppendFrame)
    assert bot.listener.names(*kinds) == ["one", "two", "LLMMessagesAppendFrame"]
    # System frames overtake the others.
    kinds = (BotStartedSpeakingFrame, BotStoppedSpeakingFrame, LLMMessagesAppendFrame)
    assert bot.listener.names(*kinds) == [kind.__name__ for kind in kinds]
    assert bot.words == ["one two"]


def test_a_spoken_text_may_stay_out_of_the_context():
    async def story(bot: Bot) -> None:
        await bot.voice.queue_frame(TTSSpeakFrame("one two", append_to_context=False))
        await asyncio.sleep(2)

    bot = play(story)

    assert [speech.text for speech in bot.voice.speeches] == ["one two"]
    assert bot.words == []


def test_words_that_come_in_pieces_are_put_together():
    async def story(bot: Bot) -> None:
        for piece in ("un", "believ", "able", " news"):
            await bot.voice.queue_frame(LLMTextFrame(piece))
        await bot.voice.queue_frame(LLMFullResponseEndFrame())
        await asyncio.sleep(2)

    assert play(story).voice.speeches[0].text == "unbelievable news"


def test_an_interruption_drops_what_waits_but_for_the_frames_that_must_arrive():
    async def story(bot: Bot) -> None:
        await bot.voice.queue_frame(TTSSpeakFrame("one two three"))
        await bot.voice.queue_frame(LLMMessagesAppendFrame([]))
        result = FunctionCallResultFrame("order", "1", {}, {"ready": 1})
        await bot.voice.queue_frame(result)
        await asyncio.sleep(0.2 + 1.5 * PACE)
        await bot.voice.queue_frame(InterruptionFrame())
        await asyncio.sleep(2)

    bot = play(story)

    assert bot.listener.names(
        TTSTextFrame, LLMMessagesAppendFrame, FunctionCallResultFrame, InterruptionFrame
    ) == ["one", "InterruptionFrame", "FunctionCallResultFrame"]
    (speech,) = bot.voice.speeches
    assert (speech.text, speech.interrupted) == ("one", True)
    assert [word.ended is None for word in speech.words] == [False, True]


def test_the_user_interrupts_the_bot_and_hears_that_it_stops():
    async def story(bot: Bot) -> None:
        await bot.user.say("hello")
        await bot.user.until_bot_speaks(1.5 * PACE)
        assert bot.user.hears_bot
        speaking = asyncio.create_task(bot.user.say("wait"))
        await asyncio.sleep(PACE / 2)
        assert not bot.user.hears_bot
        await speaking
        await bot.user.until_bot_silent(5)

    bot = play(story, "one two three", "four")

    assert bot.words == ["hello", "one", "wait", "four"]
    assert bot.listener.names(UserStoppedSpeakingFrame) == ["UserStoppedSpeakingFrame"] * 2


def test_an_interruption_stops_the_llm_before_its_call():
    async def story(bot: Bot) -> None:
        await bot.user.say("order")
        await asyncio.sleep(0.6 + 0.2)
        await bot.user.say("wait")
        await bot.user.until_bot_silent(5)

    answer = ToolCalls(ToolCall("order", {"number": 1}), text="I order")
    assert play(story, answer, "four").called == []


def test_the_llm_calls_a_tool_after_its_text_and_runs_on_the_result():
    async def story(bot: Bot) -> None:
        await bot.user.say("order")
        await bot.user.until_bot_silent(5)

    bot = play(story, ToolCalls(ToolCall("order", {"number": 7}), text="I order"), "it is ready")

    assert bot.called == [7]
    assert [speech.text for speech in bot.voice.speeches] == ["I order", "it is ready"]


def test_waiting_for_a_bot_that_does_not_speak_ends():
    async def story(bot: Bot) -> None:
        await bot.user.until_bot_speaks(1, at_most=3)
        assert asyncio.get_running_loop().time() == pytest.approx(3)

    play(story)


@pytest.mark.parametrize("make", [VoiceOutput, SimulatedUser])
def test_a_negative_pace_is_refused(make: Callable[..., object]):
    with pytest.raises(InvalidJobError, match="pace"):
        make(pace=-1)
