"""A whole voice bot: a pipeline with speech and an LLM, and two workers that do its jobs.

The concierge looks up the weather while the user waits. It books a table in the background: the
user goes on talking, and is told the result in a silence. Run it, and open the printed address::

    pip install ".[voice,offline]"
    python -m examples.voice_bot

Without keys Whisper hears and hibari speaks on this machine, and the LLM follows a script that
understands "weather in ..." and "table". With DEEPGRAM_API_KEY, CARTESIA_API_KEY and OPENAI_API_KEY
these services do it.
"""

import asyncio
import os
from typing import Any

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.services.llm_service import LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.stt_service import STTService
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, LLMWorker, job, job_tool

INSTRUCTION = "You are the concierge of a hotel. Your words are spoken: answer in one sentence."
GREETING = "Greet the user, and offer your help."


class Weather(BaseWorker):
    """Does the jobs of the tool ``forecast``."""

    @job
    async def forecast(self, city: str) -> str:
        """Look up the weather in a city."""
        await asyncio.sleep(1)
        return f"sunny in {city}, 21 degrees"


class Restaurant(BaseWorker):
    """Does the jobs of the tool ``book_table``."""

    @job
    async def book_table(self, guests: int) -> str:
        """Book a table in the restaurant. That takes a while."""
        await asyncio.sleep(5)
        return f"the table for {guests} is booked, it is the one at the window"


class Concierge(LLMWorker):
    """Talks with the user. The LLM gets each attribute made by ``job_tool`` as a tool."""

    # The LLM waits for the result. When the user speaks meanwhile, the job is cancelled.
    forecast = job_tool("weather", job=Weather.forecast, timeout=10)
    # The user goes on talking, and is told the result when nobody speaks.
    book_table = job_tool(
        "restaurant", job=Restaurant.book_table, timeout=60, cancel_on_interruption=False
    )


async def run_bot(transport: BaseTransport, runner_args: RunnerArguments) -> None:
    """Hold one conversation, until the client leaves."""
    llm, stt, tts = make_llm(), make_stt(), make_tts()
    context = LLMContextAggregatorPair(LLMContext([{"role": "developer", "content": GREETING}]))
    pipeline = Pipeline(
        [
            transport.input(),
            # Before the recognition of speech, which needs it to find the first word.
            VADProcessor(vad_analyzer=SileroVADAnalyzer()),
            stt,
            context.user(),
            llm,
            tts,
            transport.output(),
            context.assistant(),
        ]
    )
    # The LLM is in the pipeline of the conversation, so `bridged=` is not needed. It is where the
    # LLM is a worker of its own, behind a BusBridgeProcessor: see examples/debate/voice.py.
    concierge = Concierge("concierge", llm=llm, pipeline=pipeline, active=True)
    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport: BaseTransport, client: object) -> None:
        await concierge.queue_frame(LLMRunFrame())

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport: BaseTransport, client: object) -> None:
        await runner.cancel()

    await runner.add_workers(concierge, Weather("weather"), Restaurant("restaurant"))
    await runner.run()


async def bot(runner_args: RunnerArguments) -> None:
    """Make the transport and hold the conversation. Pipecat's runner calls this for each client."""
    transport = await create_transport(
        runner_args,
        {"webrtc": lambda: TransportParams(audio_in_enabled=True, audio_out_enabled=True)},
    )
    await run_bot(transport, runner_args)


def make_stt() -> STTService:
    """Make the service that turns speech into text."""
    if key := os.environ.get("DEEPGRAM_API_KEY"):
        from pipecat.services.deepgram.stt import DeepgramSTTService

        return DeepgramSTTService(api_key=key)
    from examples.local_speech import whisper_stt

    return whisper_stt()


def make_tts() -> TTSService:
    """Make the service that turns text into speech."""
    if key := os.environ.get("CARTESIA_API_KEY"):
        from pipecat.services.cartesia.tts import CartesiaTTSService

        voice = CartesiaTTSService.Settings(voice="71a7ad14-091c-4e8e-a314-022ece01c121")
        return CartesiaTTSService(api_key=key, settings=voice)
    from examples.local_speech import HibariTTSService

    return HibariTTSService()


def make_llm() -> LLMService[Any]:
    """Make the LLM."""
    if key := os.environ.get("OPENAI_API_KEY"):
        settings = OpenAILLMService.Settings(model="gpt-4.1-mini", system_instruction=INSTRUCTION)
        return OpenAILLMService(api_key=key, settings=settings)
    from examples.voice_script import make_scripted_llm

    return make_scripted_llm()


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
