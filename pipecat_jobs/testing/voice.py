"""A spoken conversation without sound, for tests on virtual time.

Three processors stand in for the user, the LLM and the voice of a bot, around Pipecat's own
aggregators::

    Pipeline([user, aggregators.user(), llm, voice, aggregators.assistant()])

`SimulatedUser` pushes the frames of voice activity detection and of a transcription service,
`ScriptedLLM` makes its answers with a function, and `VoiceOutput` delivers text and frames in the
order and at the pace of a speech service and an output transport.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallFromLLM,
    InterruptionFrame,
    LLMAssistantPushAggregationFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    StartFrame,
    SystemFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.frame_queue import FrameQueue
from pipecat.utils.time import time_now_iso8601

from pipecat_jobs._protocol.checks import check_delay
from pipecat_jobs.testing.llm_script import ToolCalls

#: How long voice activity detection takes to be sure that the user is silent.
_VAD_STOP_SECS = 0.2

#: The number of words for each frame which tells that speech goes on.
_WORDS_PER_SPEAKING_FRAME = 3


@dataclass(eq=False)
class SpokenWord:
    """One word, spoken by the bot or by the user.

    Parameters:
        text: The word.
        began: The time of the event loop at which it began.
        ended: The time at which it was spoken to its end; None while it is spoken, and for a word
            that was cut off.
    """

    text: str
    began: float
    ended: float | None = None


@dataclass(eq=False)
class Speech:
    """What one speaker said without a pause.

    Parameters:
        began: The time of the event loop at which it began.
        words: The words that have begun.
        ended: The time at which it ended; None while it goes on.
        interrupted: Whether the other speaker cut it off.
    """

    began: float
    words: list[SpokenWord] = field(default_factory=list[SpokenWord])
    ended: float | None = None
    interrupted: bool = False

    @property
    def text(self) -> str:
        """The words that were spoken to their end."""
        return " ".join(word.text for word in self.words if word.ended is not None)


class VoiceOutput(FrameProcessor):
    """Speaks the text of an LLM word by word, in place of a speech service and an output transport.

    It delivers frames as Pipecat's ``TTSService`` and ``BaseOutputTransport`` do: each word goes on
    downstream once it is spoken, so that the context has what the user has heard; all other
    downstream frames wait behind the speech that came before them; system frames and upstream
    frames overtake it. An interruption drops what waits and can be interrupted.
    """

    def __init__(self, *, latency: float = 0.2, pace: float = 0.3):
        """Initialize the processor.

        Args:
            latency: Seconds from the first text of an answer to its first word.
            pace: Seconds that a word takes.

        Raises:
            InvalidJobTypeError: If a time is not a number.
            InvalidJobError: If a time is negative.
        """
        super().__init__()
        self._latency = check_delay("latency", latency)
        self._pace = check_delay("pace", pace)
        #: What the bot has said, the latest speech last.
        self.speeches: list[Speech] = []
        self._queue = FrameQueue()
        self._speaker: asyncio.Task[None] | None = None
        #: The speech that goes on; None in silence.
        self._speech: Speech | None = None
        #: Whether the speaker task waits for a word to end, so that it may be cancelled.
        self._in_word = False
        #: Whether the answer of the LLM that arrives has text.
        self._has_text = False
        #: The beginning of a word whose end has not arrived.
        self._rest = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speak a text, or queue a frame behind the speech.

        Args:
            frame: The frame.
            direction: Where it goes.
        """
        await super().process_frame(frame, direction)
        match frame:
            case StartFrame():
                await self.push_frame(frame, direction)
                self._start_speaker()
            case CancelFrame():
                await self._stop_speaker()
                await self.push_frame(frame, direction)
            case InterruptionFrame():
                await self._interrupt(frame, direction)
            case SystemFrame():
                await self.push_frame(frame, direction)
            case Frame() if direction is FrameDirection.UPSTREAM:
                await self.push_frame(frame, direction)
            case LLMTextFrame() if not frame.skip_tts:
                self._add_text(frame.text)
            case LLMFullResponseEndFrame():
                self._end_text()
                self._queue.put_nowait(frame)
            case EndFrame():
                self._end_text()
                self._queue.put_nowait(frame)
                if self._speaker is not None:
                    await self._speaker
            case TTSSpeakFrame():
                self._add_speech(frame)
            case _:
                self._queue.put_nowait(frame)

    async def cleanup(self) -> None:
        """Stop speaking."""
        await super().cleanup()
        await self._stop_speaker()

    def _add_text(self, text: str) -> None:
        if not self._has_text:
            self._has_text = True
            self._queue.put_nowait(TTSStartedFrame())
        *words, self._rest = (self._rest + text).split(" ")
        self._add_words(words)

    def _end_text(self) -> None:
        self._add_words([self._rest])
        if self._has_text:
            self._queue.put_nowait(TTSStoppedFrame())
        self._has_text, self._rest = False, ""

    def _add_words(self, words: Sequence[str]) -> None:
        for word in words:
            if word.strip():
                self._queue.put_nowait(TTSTextFrame(word.strip(), "word"))

    def _add_speech(self, frame: TTSSpeakFrame) -> None:
        self._queue.put_nowait(TTSStartedFrame(append_to_context=frame.append_to_context))
        for word in frame.text.split():
            spoken = TTSTextFrame(word, "word")
            spoken.append_to_context = frame.append_to_context
            self._queue.put_nowait(spoken)
        self._queue.put_nowait(TTSStoppedFrame())
        # Within an answer of the LLM, the end of the answer writes the words to the context.
        if frame.append_to_context and not self._has_text:
            self._queue.put_nowait(LLMAssistantPushAggregationFrame())

    def _start_speaker(self) -> None:
        self._speaker = self.create_task(self._speak())

    async def _stop_speaker(self) -> None:
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            await self.cancel_task(speaker)

    async def _speak(self) -> None:
        while True:
            frame: Frame = await self._queue.get()
            match frame:
                case TTSTextFrame():
                    await self._speak_word(frame.text)
                case TTSStoppedFrame():
                    await self._end_speech(interrupted=False)
                case _:
                    pass
            await self.push_frame(frame)
            if isinstance(frame, EndFrame):
                return

    async def _speak_word(self, text: str) -> None:
        now = asyncio.get_running_loop().time
        if self._speech is None:
            await self._pause(self._latency)
            self._speech = Speech(now())
            self.speeches.append(self._speech)
            await self.broadcast_frame(BotStartedSpeakingFrame)
        word = SpokenWord(text, now())
        if len(self._speech.words) % _WORDS_PER_SPEAKING_FRAME == 0:
            await self.broadcast_frame(BotSpeakingFrame)
        self._speech.words.append(word)
        await self._pause(self._pace)
        word.ended = now()

    async def _pause(self, seconds: float) -> None:
        self._in_word = True
        try:
            await asyncio.sleep(seconds)
        finally:
            self._in_word = False

    async def _end_speech(self, *, interrupted: bool) -> None:
        speech, self._speech = self._speech, None
        if speech is not None:
            speech.ended, speech.interrupted = asyncio.get_running_loop().time(), interrupted
            await self.broadcast_frame(BotStoppedSpeakingFrame)

    async def _interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        self._queue.reset()
        self._has_text, self._rest = False, ""
        # A frame that is not a word is pushed without a wait, and must arrive.
        if self._in_word:
            await self._stop_speaker()
            self._start_speaker()
        await self.push_frame(frame, direction)
        await self._end_speech(interrupted=True)


Answer: TypeAlias = str | ToolCalls
"""An answer of a `ScriptedLLM`: a text, or calls of tools with a text before them."""


def _no_settings() -> LLMSettings:
    # Pipecat logs an error about the settings that a service leaves open.
    settings = LLMSettings()
    for setting in fields(settings):
        if setting.name != "extra":
            setattr(settings, setting.name, None)
    return settings


class ScriptedLLM(LLMService):
    """An LLM service whose answers a function makes from the messages of the context.

    It works as Pipecat's services do, without a provider: an interruption stops the answer at the
    token that it has reached, and tools are called once the text before them is complete.

    Example::

        from pipecat_jobs.testing.voice import ScriptedLLM


        def answer(messages):
            return f"I know {len(messages)} messages."

        service = ScriptedLLM(answer)
    """

    def __init__(
        self,
        answer: Callable[[Sequence[LLMContextMessage]], Answer],
        *,
        latency: float = 0.4,
        pace: float = 0.02,
    ):
        """Initialize the service.

        Args:
            answer: Makes the answer from the messages of the context; called once for each run.
            latency: Seconds from the request to the first token.
            pace: Seconds between one token, a word, and the next.

        Raises:
            InvalidJobTypeError: If a time is not a number.
            InvalidJobError: If a time is negative.
        """
        super().__init__(settings=_no_settings())
        self._answer = answer
        self._latency = check_delay("latency", latency)
        self._pace = check_delay("pace", pace)
        self._calls = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context, or push another frame on.

        Args:
            frame: The frame.
            direction: Where it goes.
        """
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        await self.push_frame(LLMFullResponseStartFrame())
        try:
            await self._process_context(frame.context)
        finally:
            await self.push_frame(LLMFullResponseEndFrame())

    async def _process_context(self, context: LLMContext) -> None:
        answer = self._answer(context.get_messages())
        await asyncio.sleep(self._latency)
        text = answer if isinstance(answer, str) else answer.text.text
        for token in re.findall(r"\S+\s*", text.strip()):
            await self.push_frame(LLMTextFrame(token))
            await asyncio.sleep(self._pace)
        if isinstance(answer, ToolCalls):
            await self.run_function_calls(self._number_calls(answer, context))

    def _number_calls(self, answer: ToolCalls, context: LLMContext) -> list[FunctionCallFromLLM]:
        calls: list[FunctionCallFromLLM] = []
        for call in answer.calls:
            self._calls += 1
            calls.append(
                FunctionCallFromLLM(
                    function_name=call.name,
                    tool_call_id=call.call_id or f"call_{self._calls}",
                    arguments=dict(call.arguments),
                    context=context,
                )
            )
        return calls


class SimulatedUser(FrameProcessor):
    """Speaks to a bot, in place of an input transport and a transcription service.

    The turns of the user begin and end as Pipecat's strategies decide on the frames that are pushed
    here; give the user aggregator the parameters of `turns_of_simulated_user()`.
    """

    def __init__(self, *, pace: float = 0.3):
        """Initialize the processor.

        Args:
            pace: Seconds that a word takes.

        Raises:
            InvalidJobTypeError: If the time is not a number.
            InvalidJobError: If the time is negative.
        """
        super().__init__()
        self._pace = check_delay("pace", pace)
        #: What the user has said, the latest speech last.
        self.speeches: list[Speech] = []
        #: Whether the user hears the bot.
        self.hears_bot = False
        self._changed = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Hear the bot, and push all frames on.

        Args:
            frame: The frame.
            direction: Where it goes.
        """
        await super().process_frame(frame, direction)
        match frame:
            case BotStartedSpeakingFrame():
                self._hear(True)
            case BotStoppedSpeakingFrame():
                self._hear(False)
            case _:
                pass
        await self.push_frame(frame, direction)

    async def say(self, text: str) -> None:
        """Say a text, and return when the last word is spoken.

        Args:
            text: What to say.
        """
        now = asyncio.get_running_loop().time
        speech = Speech(now())
        self.speeches.append(speech)
        await self.push_frame(VADUserStartedSpeakingFrame())
        for text_of_word in text.split():
            word = SpokenWord(text_of_word, now())
            if len(speech.words) % _WORDS_PER_SPEAKING_FRAME == 0:
                await self.push_frame(UserSpeakingFrame())
            speech.words.append(word)
            await asyncio.sleep(self._pace)
            word.ended = now()
        speech.ended = now()
        await self.push_frame(TranscriptionFrame(text, "user", time_now_iso8601()))
        await asyncio.sleep(_VAD_STOP_SECS)
        await self.push_frame(VADUserStoppedSpeakingFrame(stop_secs=_VAD_STOP_SECS))

    async def until_bot_silent(self, seconds: float) -> None:
        """Wait until the bot has been silent for a time.

        Args:
            seconds: How long, from the call or from the end of the bot's last speech.
        """
        while True:
            self._changed.clear()
            if self.hears_bot:
                await self._changed.wait()
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except TimeoutError:
                return

    async def until_bot_speaks(self, seconds: float, *, at_most: float = 10.0) -> None:
        """Wait until the bot speaks, and for some seconds of its speech.

        Args:
            seconds: How long to let the bot speak.
            at_most: Seconds after which not to wait any more for the bot to speak.
        """
        try:
            async with asyncio.timeout(at_most):
                while not self.hears_bot:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(seconds)

    def _hear(self, hears_bot: bool) -> None:
        self.hears_bot = hears_bot
        self._changed.set()


def turns_of_simulated_user() -> LLMUserAggregatorParams:
    """Make the parameters of a user aggregator whose user is a `SimulatedUser`.

    Returns:
        Parameters with Pipecat's default start of a turn, and an end 0.6 s after the last word.
    """
    stop = SpeechTimeoutUserTurnStopStrategy()
    return LLMUserAggregatorParams(user_turn_strategies=UserTurnStrategies(stop=[stop]))
