"""A user and a bot that speak: real speech through Pipecat's own transports."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator

import numpy as np
from hibari import Hibari
from pipecat.audio.utils import create_file_resampler
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

from examples.local_speech import load_voice, to_pcm

#: Samples per second, of 16 bits, one channel: what Silero VAD listens to.
RATE = 16000

#: Seconds of sound per frame.
CHUNK = 0.02

_BYTES_PER_SECOND = 2 * RATE
_CHUNK_BYTES = int(CHUNK * _BYTES_PER_SECOND)
_SILENCE = bytes(_CHUNK_BYTES)


def duration(pcm: bytes) -> float:
    """Seconds of sound."""
    return len(pcm) / _BYTES_PER_SECOND


def loudness(pcm: bytes) -> float:
    """Root mean square in decibels below full scale; minus infinity for silence."""
    power = np.mean((np.frombuffer(pcm, np.int16) / 32768) ** 2)
    return 10 * math.log10(power) if power else -math.inf


async def speech(text: str) -> bytes:
    """Have hibari say a text, the same way every time."""
    # In a thread, because an interrupted bot may stop waiting for its next speech.
    sound = await asyncio.to_thread(load_voice(), text, seed=0)
    return await create_file_resampler().resample(to_pcm(sound), Hibari.sample_rate, RATE)


class Microphone(BaseInputTransport):
    """The audio input in real time: silence, except for the user's speech."""

    def __init__(self) -> None:
        super().__init__(TransportParams(audio_in_enabled=True, audio_in_sample_rate=RATE))
        self._chunks: deque[bytes] = deque()
        self._said = asyncio.Event()

    async def say(self, pcm: bytes) -> None:
        """Speak, and return after the last word."""
        self._said.clear()
        self._chunks.extend(
            pcm[start : start + _CHUNK_BYTES].ljust(_CHUNK_BYTES, b"\0")
            for start in range(0, len(pcm), _CHUNK_BYTES)
        )
        await self._said.wait()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._listening = self.create_task(self._listen())

    async def cleanup(self) -> None:
        await super().cleanup()
        await self.cancel_task(self._listening)

    async def _listen(self) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            chunk = self._chunks.popleft() if self._chunks else _SILENCE
            await self.push_audio_frame(InputAudioRawFrame(chunk, RATE, 1))
            if not self._chunks:
                self._said.set()
            due += CHUNK
            await asyncio.sleep(due - now())


class Speaker(BaseOutputTransport):
    """The audio output, which plays in real time and counts what it has played."""

    def __init__(self) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_sample_rate=RATE))
        self.played = 0.0
        """Seconds of sound."""

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self.played += duration(frame.audio)
        await asyncio.sleep(duration(frame.audio))
        return True


class Voice(TTSService):
    """Speaks with hibari at once, and counts the requested speech."""

    def __init__(self) -> None:
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(
            sample_rate=RATE, push_start_frame=True, push_stop_frames=True, settings=settings
        )
        self.spoken = 0.0
        """Seconds of sound."""

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        pcm = await speech(text)
        self.spoken += duration(pcm)
        yield TTSAudioRawFrame(pcm, RATE, 1, context_id=context_id)
