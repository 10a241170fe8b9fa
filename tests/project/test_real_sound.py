"""The user talks over the bot: real speech, real voice activity detection, real HTTP streams."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator

import numpy as np
import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.services.llm_service import LLMService
from support.sound import RATE, Microphone, Speaker, Voice, loudness, speech

from benchmarks.debate import DEBATERS, MODERATOR, JobsDebater, JobsModerator, instruction
from benchmarks.llm import LLM
from pipecat_jobs.testing import (
    JobHarness,
    LLMRequest,
    ScriptedLLMServer,
    Stall,
    Text,
    ToolCall,
    ToolCalls,
)

pytestmark = pytest.mark.not_on(
    "pubsub", reason="its harness waits until nothing moves, as sound does"
)

DEBATE = ToolCall("debate", {"topic": "whether AI should be regulated"})
# Without a full stop: to find the end of a sentence, Pipecat 1.8 downloads a model.
ANNOUNCEMENT = "I will ask an advocate and a critic and an analyst what they think about it and "
PACE = 0.05


def argument(seconds: float) -> Text:
    """A text that a debater speaks for some time."""
    return Text(" ".join(["regulation"] * round(seconds / PACE)), pace=PACE)


class Bot:
    """A moderator with audio input and output, and the three debaters that it asks."""

    def __init__(self, base_url: str):
        self.microphone, self.voice, self.speaker = Microphone(), Voice(), Speaker()
        aggregators = LLMContextAggregatorPair(
            LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
        )
        llm = LLM(base_url, MODERATOR)
        pipeline = Pipeline(
            [
                self.microphone,
                aggregators.user(),
                llm,
                self.voice,
                self.speaker,
                aggregators.assistant(),
            ]
        )
        self.moderator = JobsModerator(llm, pipeline)
        self.debaters = [JobsDebater(name, LLM(base_url, instruction(name))) for name in DEBATERS]
        #: The frames that the LLM has seen, including those of the transports on both its sides.
        self.seen: defaultdict[type[Frame], asyncio.Event] = defaultdict(asyncio.Event)
        llm.add_event_handler("on_before_process_frame", self._see)

    def _see(self, _: LLMService, frame: Frame) -> None:
        self.seen[type(frame)].set()

    async def hear(self, text: str) -> None:
        """The first words of the user, as text, without speech recognition."""
        message = {"role": "user", "content": text}
        await self.moderator.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))


@pytest.fixture
async def bot(job_harness: JobHarness, scripted_llm: ScriptedLLMServer) -> AsyncIterator[Bot]:
    bot = Bot(scripted_llm.base_url)
    await job_harness.start(bot.moderator, *bot.debaters)
    yield bot
    # The microphone never rests, and a busy machine is behind it.
    await job_harness.cancel(bot.moderator)


async def requests_of_debaters(server: ScriptedLLMServer) -> list[LLMRequest]:
    """The requests of the debaters, which come after the moderator's first."""
    return (await server.wait_for_requests(1 + len(DEBATERS)))[1 : 1 + len(DEBATERS)]


async def test_speech_of_the_user_stops_every_debater(bot: Bot, scripted_llm: ScriptedLLMServer):
    # The moderator gives no further speech, which could otherwise be mistaken for its earlier
    # speech.
    scripted_llm.on(MODERATOR, ToolCalls(DEBATE, text=4 * ANNOUNCEMENT), Stall())
    long = argument(seconds=30)
    scripted_llm.on("You argue", long)
    now = asyncio.get_running_loop().time
    words = await speech("Stop please, let us talk about something else")
    assert loudness(words) > -28

    await bot.hear("Should AI be regulated?")
    requests = await requests_of_debaters(scripted_llm)
    for request in requests:
        await request.wait_token(5)
    await bot.seen[BotStartedSpeakingFrame].wait()
    assert not bot.seen[InterruptionFrame].is_set()

    speaking = asyncio.create_task(bot.microphone.say(words))
    await bot.seen[InterruptionFrame].wait()
    interrupted, sent = now(), [len(request.sent) for request in requests]
    await bot.seen[VADUserStartedSpeakingFrame].wait()
    await bot.moderator.tool_cancelled.wait()
    for request in requests:
        await request.wait_hung_up()
    await bot.seen[BotStoppedSpeakingFrame].wait()
    played = bot.speaker.played
    await speaking

    for request, before in zip(requests, sent, strict=True):
        assert request.hung_up_at is not None
        took = request.hung_up_at - interrupted
        assert took < 1
        assert len(request.sent) - before <= math.ceil(took / PACE)
        assert len(request.sent) < len(long.tokens) / 2
    # The chunk that was being played.
    assert bot.speaker.played == pytest.approx(played, abs=0.1)
    assert played < bot.voice.spoken / 2


@pytest.mark.parametrize("loud", [False, True], ids=["silence", "noise"])
async def test_sound_that_is_not_a_voice_does_not_interrupt(
    bot: Bot, scripted_llm: ScriptedLLMServer, loud: bool
):
    scripted_llm.on(MODERATOR, ToolCalls(DEBATE, text=ANNOUNCEMENT), "They disagree.")
    scripted_llm.on("You argue", argument(seconds=5))
    # As loud as the voice of the other test.
    level = 3000 if loud else 0
    noise = np.random.default_rng(0).normal(0, level, 2 * RATE).astype(np.int16).tobytes()
    assert (loudness(noise) > -22) is loud

    await bot.hear("Should AI be regulated?")
    requests = await requests_of_debaters(scripted_llm)
    await bot.seen[BotStartedSpeakingFrame].wait()
    await bot.microphone.say(noise)
    assert [request.outcome for request in requests] == ["streaming"] * len(DEBATERS)
    await scripted_llm.wait_for_requests(2 + len(DEBATERS))

    assert [request.outcome for request in requests] == ["completed"] * len(DEBATERS)
    assert not bot.seen[VADUserStartedSpeakingFrame].is_set()
    assert not bot.seen[InterruptionFrame].is_set()
    assert not bot.moderator.tool_cancelled.is_set()
