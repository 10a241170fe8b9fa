"""The debate as a conversation: what hears and speaks, and the moderator that it is bridged to.

Two workers talk with the user. The one called ``voice`` owns the transport: it hears, speaks and
keeps the conversation's context. Where its pipeline would have an LLM it has a bridge, and on the
other side of the bus is the moderator, whose pipeline is just its LLM. The user's interruption
crosses the bridge as a frame, and Pipecat cancels the moderator's tool; the tool cancels its jobs,
and they stop the debaters' LLMs.
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
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.llm import LLMWorkerActivationArgs
from pipecat.workers.runner import WorkerRunner

from examples.debate.stage import Provider
from examples.debate.workers import DEBATERS, MODERATOR, Debater
from pipecat_jobs import LLMWorker, PipelineWorker, job_tool

_GREETING = "Greet the user in one sentence, and ask which topic to debate."
_CARTESIA_VOICE = "71a7ad14-091c-4e8e-a314-022ece01c121"


@dataclass(frozen=True)
class Speech:
    """The services that hear and speak.

    Parameters:
        deepgram_key: The key for Deepgram, which writes down what the user says.
        cartesia_key: The key for Cartesia, which speaks what the moderator says.
    """

    deepgram_key: str
    cartesia_key: str

    def stt(self) -> FrameProcessor:
        """Make the service that hears."""
        from pipecat.services.deepgram.stt import DeepgramSTTService

        return DeepgramSTTService(api_key=self.deepgram_key)

    def tts(self) -> FrameProcessor:
        """Make the service that speaks."""
        from pipecat.services.cartesia.tts import CartesiaTTSService

        return CartesiaTTSService(
            api_key=self.cartesia_key, settings=CartesiaTTSService.Settings(voice=_CARTESIA_VOICE)
        )


def find_speech() -> Speech | None:
    """Take the user's keys for speech.

    Returns:
        The services, or None without keys: then the user types and reads.

    Raises:
        ValueError: If there is one key without the other.
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
    """Moderates across the bridge, and has a topic debated before it says anything about it."""

    @job_tool(*DEBATERS, job="argue", timeout=60, say_after=4, say="They are still arguing.")
    async def debate(self, topic: str) -> dict[str, Any]:
        """Have an advocate, a critic and an analyst argue a topic side by side.

        Args:
            topic: The topic, as one short question or claim.
        """
        return {"topic": topic}


class Captions(FrameProcessor):
    """Stands where a TTS would: what nobody will speak is given out sentence by sentence.

    Pipecat's own page shows the bot's sentences, and waits with each until it is spoken unless the
    frame says that it will not be.
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
            # The words have gone there one by one, so that an interruption keeps what was said.
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
        transport: Where the user is.
        provider: The LLM that the moderator and the debaters speak with.
        speech: What hears and speaks; None to type and read.
        handle_sigint: Whether Ctrl-C ends the conversation, rather than whoever calls this.
        idle_timeout: How long nobody may speak before it ends, in seconds; None for ever.
    """
    runner = WorkerRunner(handle_sigint=handle_sigint)
    vad = SileroVADAnalyzer() if speech else None
    context = LLMContextAggregatorPair(
        LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=vad)
    )
    # What the user's microphone sends concerns nobody else on the bus.
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
        # Nobody speaks in a conversation that is typed.
        idle_timeout_secs=idle_timeout if speech else None,
    )
    moderator = VoiceModerator("moderator", llm=provider.llm(MODERATOR), bridged=())
    debaters = [Debater(name, llm=provider.llm(role)) for name, role in DEBATERS.items()]

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: BaseTransport, client: object) -> None:
        greeting = {"role": "developer", "content": _GREETING}
        await voice.activate_worker("moderator", args=LLMWorkerActivationArgs(messages=[greeting]))

    async def hang_up(*_: object) -> None:
        await runner.cancel()

    # The client may leave by itself or have the voice end; the others would wait for jobs for ever.
    transport.add_event_handler("on_client_disconnected", hang_up)
    voice.add_event_handler("on_pipeline_finished", hang_up)
    await runner.add_workers(moderator, *debaters, voice)
    await runner.run()
