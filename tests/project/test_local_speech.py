"""Speech without a key: hibari speaks a sentence at a time, and Whisper understands it."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    Frame,
    InterruptionFrame,
    MetricsFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData, TTSUsageMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from support.recognition import count_errors, needs_whisper, words
from support.sentences import no_rules_of_sentences
from support.sound import Microphone, Speaker, speech

from examples import local_speech
from examples.local_speech import HibariTTSService, whisper_stt
from pipecat_jobs import PipelineWorker
from pipecat_jobs.testing import JobHarness

__all__ = ["no_rules_of_sentences"]

FrameT = TypeVar("FrameT", bound=Frame)


class Collector(FrameProcessor):
    """Keeps the frames that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self._news = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self._news.set()
        await self.push_frame(frame, direction)

    def of(self, kind: type[FrameT]) -> list[FrameT]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def text(self) -> str:
        """What was recognized, which may be in parts."""
        return " ".join(frame.text for frame in self.of(TranscriptionFrame))

    async def until(self, kind: type[Frame]) -> None:
        """Wait for a frame of a class."""
        await self._until(lambda: bool(self.of(kind)))

    async def until_understood(self, said: str) -> None:
        """Wait until a sentence was recognized but for one word."""
        await self._until(lambda: count_errors(said, self.text) <= 1)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(100):
            while not condition():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def running(
    harness: JobHarness, *processors: FrameProcessor
) -> AsyncGenerator[PipelineWorker]:
    worker = PipelineWorker(
        Pipeline(list(processors)),
        name="speaker",
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
    )
    await harness.start(worker)
    yield worker
    await harness.cancel(worker)


class SlowVoice:
    """In place of hibari: says a sentence when it is allowed to."""

    def __init__(self) -> None:
        self.begun = 0
        self._allowed = threading.Semaphore(0)

    def allow(self) -> None:
        self._allowed.release()

    def stream(self, text: str) -> Iterator[NDArray[np.float32]]:
        for _ in text.split(". "):
            self.begun += 1
            assert self._allowed.acquire(timeout=100)
            yield np.full(2400, 0.5, np.float32)


# Speaking


async def test_each_sentence_is_spoken_in_the_order_that_pipecat_expects(job_harness: JobHarness):
    tts, end = HibariTTSService(), Collector()
    async with running(job_harness, tts, end) as worker:
        await worker.queue_frame(TTSSpeakFrame("Hello there. How are you?"))
        await end.until(TTSStoppedFrame)

    kinds = (TTSStartedFrame, TTSAudioRawFrame, TTSTextFrame, TTSStoppedFrame)
    order = [type(frame) for frame in end.frames if isinstance(frame, kinds)]
    assert order == [
        *(TTSStartedFrame, TTSAudioRawFrame, TTSAudioRawFrame, TTSTextFrame, TTSStoppedFrame)
    ]
    sounds = end.of(TTSAudioRawFrame)
    assert {(sound.sample_rate, sound.num_channels) for sound in sounds} == {(24000, 1)}
    assert 1 < sum(len(sound.audio) for sound in sounds) / 48000 < 4
    # Speech begins at once, and there is a pause before the next sentence.
    first, _ = (np.abs(np.frombuffer(sound.audio, np.int16)) > 330 for sound in sounds)
    assert first[:2400].any()
    assert not first[-4800:].any()
    metrics = [data for frame in end.of(MetricsFrame) for data in frame.data]
    assert [data.value for data in metrics if isinstance(data, TTSUsageMetricsData)] == [25]
    assert any(isinstance(data, TTFBMetricsData) for data in metrics)


async def test_the_transport_gets_the_sample_rate_that_it_asks_for(job_harness: JobHarness):
    made, speaker, end = Collector(), Speaker(), Collector()
    async with running(job_harness, HibariTTSService(), made, speaker, end) as worker:
        await worker.queue_frame(TTSSpeakFrame("Hello there."))
        await end.until(TTSStoppedFrame)

    [sound] = made.of(TTSAudioRawFrame)
    assert speaker.played == pytest.approx(len(sound.audio) / 48000, abs=0.2)


async def test_an_interruption_ends_the_speech_within_a_sentence(
    job_harness: JobHarness, monkeypatch: pytest.MonkeyPatch
):
    voice = SlowVoice()
    monkeypatch.setattr(local_speech, "load_voice", lambda: voice)
    end = Collector()
    async with running(job_harness, HibariTTSService(), end) as worker:
        await worker.queue_frame(TTSSpeakFrame("One. Two. Three. Four. Five."))
        voice.allow()
        await end.until(TTSAudioRawFrame)
        await worker.queue_frame(InterruptionFrame())
        await end.until(InterruptionFrame)
        voice.allow()
        # Speaks again, so what was dropped does not come later.
        await worker.queue_frame(TTSSpeakFrame("Six."))
        voice.allow()
        await end.until(TTSStoppedFrame)

    # The second sentence may have been under way.
    assert voice.begun in (2, 3)
    assert len(end.of(TTSAudioRawFrame)) == 2
    assert [frame.text for frame in end.of(TTSTextFrame)] == ["Six."]


# Hearing


SENTENCES = (
    "Should cats be allowed to vote?",
    "Please debate whether artificial intelligence should be regulated.",
    "Stop, let us talk about something else.",
    "Is remote work better than working in an office?",
)


@pytest.mark.slow
@needs_whisper
async def test_whisper_understands_what_hibari_says_from_the_first_word(job_harness: JobHarness):
    microphone, heard = Microphone(), Collector()
    vad = VADProcessor(vad_analyzer=SileroVADAnalyzer())
    async with running(job_harness, microphone, vad, whisper_stt(), heard):
        for said in SENTENCES:
            heard.frames.clear()
            await microphone.say(await speech(said))
            await heard.until_understood(said)
            assert words(heard.text)[:2] == words(said)[:2]
