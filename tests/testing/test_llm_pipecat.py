import asyncio
from collections.abc import AsyncIterator

import pytest
from pipecat.frames.frames import InterruptionFrame, LLMMessagesAppendFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.llm import LLMContextWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs.testing.llm_server import (
    ScriptedLLMServer,
    Text,
    ToolCall,
    ToolCalls,
)

# Pipecat


@pytest.fixture
async def bot(server: ScriptedLLMServer) -> AsyncIterator[LLMContextWorker]:
    async def get_weather(params: FunctionCallParams, city: str) -> None:
        """Get the weather.

        Args:
            params: The call.
            city: Where.
        """
        await params.result_callback({"weather": f"rain in {city}"})

    llm = OpenAILLMService(
        api_key="test",
        base_url=server.base_url,
        settings=OpenAILLMService.Settings(model="scripted", system_instruction="Be kind."),
    )
    worker = LLMContextWorker("bot", llm=llm, active=True, context=LLMContext(tools=[get_weather]))
    runner = WorkerRunner(handle_sigint=False)
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_pipeline_started(worker: LLMContextWorker, frame: object) -> None:
        started.set()

    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await started.wait()
    yield worker
    await runner.cancel()
    await running
    await llm._client.close()


async def say(bot: LLMContextWorker, text: str) -> None:
    message = {"role": "user", "content": text}
    await bot.queue_frame(LLMMessagesAppendFrame(messages=[message], run_llm=True))


async def next_answer(bot: LLMContextWorker) -> str:
    said: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @bot.assistant_aggregator.event_handler("on_assistant_turn_stopped")
    async def on_assistant_turn_stopped(aggregator: object, message: object) -> None:
        # A turn that only calls tools also ends, without text.
        if message.content and not said.done():
            said.set_result(message.content)

    return await said


async def test_pipecat_answers_with_text_and_tools(
    server: ScriptedLLMServer, bot: LLMContextWorker
) -> None:
    server.on(
        "weather",
        ToolCalls(
            ToolCall("get_weather", {"city": "Oslo"}), ToolCall("get_weather", {"city": "Rome"})
        ),
        "It rains in both.",
    )

    await say(bot, "How is the weather?")
    assert await next_answer(bot) == "It rains in both."

    first, second = server.requests
    assert first.system == "Be kind."
    assert first.last_user_text == "How is the weather?"
    assert first.tools == ["get_weather"]
    assert second.mentions("rain in Oslo")
    assert second.mentions("rain in Rome")


async def test_pipecat_interruption_hangs_up(
    server: ScriptedLLMServer, bot: LLMContextWorker
) -> None:
    server.reply(Text("one two three", pace=3600), "Welcome back.")

    await say(bot, "Count.")
    (request,) = await server.wait_for_requests(1)
    await request.wait_token(1)
    await bot.queue_frame(InterruptionFrame())

    await request.wait_hung_up()
    assert request.sent == ["one"]
    await say(bot, "Hello?")
    (_, second) = await server.wait_for_requests(2)
    await second.wait_ended()
    assert second.sent_text == "Welcome back."
