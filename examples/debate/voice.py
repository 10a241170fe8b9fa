"""The debate as a conversation: a worker with the transport, and the moderator behind a bridge.

Two workers talk with the user. The worker ``voice`` owns the transport: it recognizes and makes
speech, and has the context of the conversation. Its pipeline has a bridge in place of an LLM. The
moderator is on the other side of the bus, and its pipeline has only its LLM. The user's
interruption crosses the bridge as a frame, and Pipecat cancels the moderator's tool; the tool
cancels its jobs, and they stop the debaters' LLMs.
"""

import asyncio
from typing import Any

from loguru import logger
from pipecat.bus import BusBridgeProcessor
from pipecat.frames.frames import InputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frameworks.rtvi.models import ClientMessage
from pipecat.processors.frameworks.rtvi.processor import RTVIProcessor
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.llm import LLMWorkerActivationArgs
from pipecat.workers.runner import WorkerRunner

from examples.debate.board import UNDEBATED
from examples.debate.speech import Speech
from examples.debate.stage import Provider
from examples.debate.workers import DEBATERS, MODERATOR, Debater, on_undebated
from pipecat_jobs import ClientJobs, LLMWorker, PipelineWorker, job_tool

_GREETING = "Greet the user in one sentence, and ask which topic to debate."


class VoiceModerator(LLMWorker):
    """The moderator behind the bridge; before it talks about a topic, it has the debaters argue."""

    @job_tool(*DEBATERS, job="argue", timeout=60, say_after=4, say="They are still arguing.")
    async def debate(self, topic: str) -> dict[str, Any]:
        """Have an advocate, a critic and an analyst argue a topic side by side.

        Args:
            topic: The topic, as one short question or claim.
        """
        return {"topic": topic}


async def converse(
    transport: BaseTransport,
    provider: Provider,
    speech: Speech,
    *,
    handle_sigint: bool = False,
    idle_timeout: float | None = None,
) -> None:
    """Hold one conversation, from the client's connection to its end.

    Args:
        transport: The transport to the user.
        provider: The LLM of the moderator and the debaters.
        speech: How the user and the bot talk.
        handle_sigint: Whether Ctrl-C ends the conversation.
        idle_timeout: Seconds without speech after which it ends; None for no limit.
    """
    runner = WorkerRunner(handle_sigint=handle_sigint)
    context = LLMContextAggregatorPair(LLMContext())
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
                *speech.ears(),
                context.user(),
                bridge,
                speech.mouth(),
                transport.output(),
                context.assistant(),
            ]
        ),
        name="voice",
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
        # A typed conversation has no speech.
        idle_timeout_secs=idle_timeout if speech.sound else None,
    )

    def warn_user() -> None:
        logger.warning(UNDEBATED)
        voice.create_task(voice.rtvi.send_error(UNDEBATED), "undebated")

    llm = provider.llm(MODERATOR)
    on_undebated(llm, warn_user)
    moderator = VoiceModerator("moderator", llm=llm, bridged=())
    debaters = [Debater(name, llm=provider.llm(role)) for name, role in DEBATERS.items()]
    # The page shows the debaters and their words.
    ClientJobs(voice, stream_interval=0.1).follow(moderator)

    @voice.rtvi.event_handler("on_client_message")
    async def on_client_message(rtvi: RTVIProcessor, message: ClientMessage) -> None:
        if message.type == "interrupt":
            await rtvi.interrupt_bot()

    greeted = asyncio.Event()

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: BaseTransport, client: object) -> None:
        # Pipecat reports it twice when the connection is made while the pipeline starts.
        if greeted.is_set():
            return
        greeted.set()
        greeting = {"role": "developer", "content": _GREETING}
        await voice.activate_worker("moderator", args=LLMWorkerActivationArgs(messages=[greeting]))

    async def hang_up(*_: object) -> None:
        await runner.cancel()

    # The client may disconnect or end the voice worker. The other workers would go on for ever.
    transport.add_event_handler("on_client_disconnected", hang_up)
    voice.add_event_handler("on_pipeline_finished", hang_up)
    await runner.add_workers(moderator, *debaters, voice)
    await runner.run()
