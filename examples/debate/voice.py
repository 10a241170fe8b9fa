"""The debate as a conversation: a worker with the transport, and the moderator behind a bridge.

Two workers talk with the user. The worker ``voice`` owns the transport: it recognizes and makes
speech, and has the context of the conversation. Its pipeline has a bridge in place of an LLM. The
moderator is on the other side of the bus, and its pipeline has only its LLM. The user's
interruption crosses the bridge as a frame, and Pipecat cancels the moderator's tool; the tool
cancels its jobs, and they stop the debaters' LLMs.
"""

import os
from dataclasses import dataclass
from typing import Any

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.bus import BusBridgeProcessor
from pipecat.frames.frames import (
    AggregatedTextFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.processors.frameworks.rtvi.models import ClientMessage
from pipecat.processors.frameworks.rtvi.processor import RTVIProcessor
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.llm import LLMWorkerActivationArgs
from pipecat.workers.runner import WorkerRunner

from examples.debate.stage import Provider
from examples.debate.workers import DEBATERS, MODERATOR, Debater
from pipecat_jobs import ClientJobs, LLMWorker, PipelineWorker, job_tool

_GREETING = "Greet the user in one sentence, and ask which topic to debate."
_CARTESIA_VOICE = "71a7ad14-091c-4e8e-a314-022ece01c121"


@dataclass(frozen=True)
class Speech:
    """The services for speech.

    Parameters:
        deepgram_key: The key for Deepgram, which turns the user's speech into text.
        cartesia_key: The key for Cartesia, which speaks the moderator's text.
    """

    deepgram_key: str
    cartesia_key: str

    def stt(self) -> FrameProcessor:
        """Make the speech-to-text service."""
        from pipecat.services.deepgram.stt import DeepgramSTTService

        return DeepgramSTTService(api_key=self.deepgram_key)

    def tts(self) -> FrameProcessor:
        """Make the text-to-speech service."""
        from pipecat.services.cartesia.tts import CartesiaTTSService

        return CartesiaTTSService(
            api_key=self.cartesia_key, settings=CartesiaTTSService.Settings(voice=_CARTESIA_VOICE)
        )


def find_speech() -> Speech | None:
    """Read the user's keys for speech.

    Returns:
        The services, or None without keys: then the user types and reads.

    Raises:
        ValueError: If only one of the two keys is set.
    """
    keys = {name: os.environ.get(name, "") for name in ("DEEPGRAM_API_KEY", "CARTESIA_API_KEY")}
    if not any(keys.values()):
        return None
    if missing := [name for name, key in keys.items() if not key]:
        (given,) = keys.keys() - missing
        raise ValueError(
            f"{given} is set, but {missing[0]} is not: set both to speak with the bot, or neither "
            "to type"
        )
    return Speech(*keys.values())


class VoiceModerator(LLMWorker):
    """The moderator behind the bridge; before it talks about a topic, it has the debaters argue."""

    @job_tool(*DEBATERS, job="argue", timeout=60, say_after=4, say="They are still arguing.")
    async def debate(self, topic: str) -> dict[str, Any]:
        """Have an advocate, a critic and an analyst argue a topic side by side.

        Args:
            topic: The topic, as one short question or claim.
        """
        return {"topic": topic}


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


async def converse(
    transport: BaseTransport,
    provider: Provider,
    speech: Speech | None,
    *,
    handle_sigint: bool = False,
    idle_timeout: float | None = None,
) -> None:
    """Hold one conversation, from the client's connection to its end.

    Args:
        transport: The transport to the user.
        provider: The LLM of the moderator and the debaters.
        speech: The services for speech; None to type and read.
        handle_sigint: Whether Ctrl-C ends the conversation.
        idle_timeout: Seconds without speech after which it ends; None for no limit.
    """
    runner = WorkerRunner(handle_sigint=handle_sigint)
    vad = SileroVADAnalyzer() if speech else None
    context = LLMContextAggregatorPair(
        LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=vad)
    )
    # No other worker on the bus needs the sound of the user's microphone.
    bridge = BusBridgeProcessor(
        bus=runner.bus,
        worker_name="voice",
        target_worker="moderator",
        exclude_frames=(InputAudioRawFrame,),
    )
    voice = PipelineWorker(
        Pipeline(
            [
                transport.input(),
                *([speech.stt()] if speech else []),
                context.user(),
                bridge,
                speech.tts() if speech else Captions(),
                transport.output(),
                context.assistant(),
            ]
        ),
        name="voice",
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
        # A typed conversation has no speech.
        idle_timeout_secs=idle_timeout if speech else None,
    )
    moderator = VoiceModerator("moderator", llm=provider.llm(MODERATOR), bridged=())
    debaters = [Debater(name, llm=provider.llm(role)) for name, role in DEBATERS.items()]
    # The page shows the debaters and their words.
    ClientJobs(voice, stream_interval=0.1).follow(moderator)

    @voice.rtvi.event_handler("on_client_message")
    async def on_client_message(rtvi: RTVIProcessor, message: ClientMessage) -> None:
        if message.type == "interrupt":
            await rtvi.interrupt_bot()

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: BaseTransport, client: object) -> None:
        greeting = {"role": "developer", "content": _GREETING}
        await voice.activate_worker("moderator", args=LLMWorkerActivationArgs(messages=[greeting]))

    async def hang_up(*_: object) -> None:
        await runner.cancel()

    # The client may disconnect or end the voice worker. The other workers would go on for ever.
    transport.add_event_handler("on_client_disconnected", hang_up)
    voice.add_event_handler("on_pipeline_finished", hang_up)
    await runner.add_workers(moderator, *debaters, voice)
    await runner.run()
