"""A client that speaks to a bot over WebRTC, and keeps what it hears."""

import asyncio
import contextlib
from collections import deque
from fractions import Fraction
from types import TracebackType

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from support.sound import CHUNK, RATE
from support.typing_client import Answer, TypingClient

_SAMPLES = int(CHUNK * RATE)


class Mouth(MediaStreamTrack):
    """A microphone in real time: silence, except for the user's speech."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._chunks: deque[bytes] = deque()
        self._said = asyncio.Event()
        self._begun: float | None = None
        self._sent = 0

    async def say(self, pcm: bytes) -> None:
        """Speak, and return after the last word."""
        self._said.clear()
        size = 2 * _SAMPLES
        chunks = [pcm[start : start + size] for start in range(0, len(pcm), size)]
        self._chunks.extend(chunk.ljust(size, b"\0") for chunk in chunks)
        await self._said.wait()

    async def recv(self) -> av.AudioFrame:
        """Wait for the time of the next chunk, and give it out."""
        now = asyncio.get_running_loop().time()
        if self._begun is None:
            self._begun = now
        await asyncio.sleep(self._begun + self._sent * CHUNK - now)
        frame = av.AudioFrame(format="s16", layout="mono", samples=_SAMPLES)
        frame.planes[0].update(self._chunks.popleft() if self._chunks else bytes(2 * _SAMPLES))
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = self._sent * _SAMPLES
        self._sent += 1
        if not self._chunks:
            self._said.set()
        return frame


class SpeakingClient(TypingClient):
    """Connects as the typing client does, with sound both ways."""

    def __init__(self, answer: Answer):
        super().__init__(answer)
        self._mouth = Mouth()
        #: The bot's sound so far: 16-bit PCM at RATE.
        self.heard = bytearray()

    async def say(self, pcm: bytes) -> None:
        """Speak, and return after the last word."""
        await self._mouth.say(pcm)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(exc_type, exc, traceback)
        await self._hearing

    def _add_tracks(self) -> None:
        self._peer.addTrack(self._mouth)
        self._peer.on("track", self._start_hearing)

    def _start_hearing(self, track: MediaStreamTrack) -> None:
        self._hearing = asyncio.create_task(self._hear(track))

    async def _hear(self, track: MediaStreamTrack) -> None:
        resampler = av.AudioResampler("s16", "mono", RATE)
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                for part in resampler.resample(frame):
                    self.heard += part.to_ndarray().tobytes()
