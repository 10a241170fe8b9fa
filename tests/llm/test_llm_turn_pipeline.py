"""LLM turns of workers that build their own pipeline."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    Frame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
)
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams, LLMService
from pipecat.services.openai.llm import OpenAILLMService
from support.llm_workers import LONG, NewLLM, Requester, asked, last_asked, new_llm, start
from support.sound import Speaker, Voice
from support.workers import cancelled

from pipecat_jobs import (
    InvalidJobError,
    JobCancelledError,
    JobError,
    LLMTurnTimeoutError,
    LLMWorker,
    PipelineWorker,
    job,
    tool,
)
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Passing(FrameProcessor):
    """Passes every frame on."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class Speech(Passing):
    """Stands for text-to-speech and its playback: the end of a text comes when it was spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken = asyncio.Event()
        self.spoken.set()
        self.speaking = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.text = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, LLMTextFrame):
            self.text += frame.text
        if isinstance(frame, LLMFullResponseEndFrame):
            self.speaking.set()
            try:
                await self.spoken.wait()
            except asyncio.CancelledError:
                # By an interruption.
                self.interrupted.set()
                raise
        await super().process_frame(frame, direction)


class Bot(PipelineWorker):
    """A bot whose LLM is between two aggregators, as in a voice bot."""

    def __init__(
        self,
        llm: LLMService[Any],
        *,
        build: Callable[[Any, Any, Any], list[FrameProcessor]] = lambda *parts: list(parts),
        tools: list[Any] | None = None,
    ):
        self.llm = llm
        self.context = LLMContext(tools=tools) if tools else LLMContext()
        self.user, self.assistant = LLMContextAggregatorPair(self.context)
        super().__init__(Pipeline(build(self.user, llm, self.assistant)), name="debater")

    @job(name="argue")
    async def argue(self, message: BusJobRequestMessage) -> dict[str, Any]:
        payload = dict(message.payload or {})
        return {"text": await self.llm_turn(payload.pop("topic"), **payload)}

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        @self.assistant.event_handler("on_assistant_turn_stopped")
        async def respond(_: object, said: Any) -> None:
            if message.job_id in self.active_jobs:
                await self.send_job_response(message.job_id, {"text": said.content})

        topic: Any = {"role": "user", "content": message.payload["topic"]}
        await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))


BUILDS: dict[str, Callable[[Any, Any, Any], list[FrameProcessor]]] = {
    "plain": lambda user, llm, assistant: [user, llm, assistant],
    "with others": lambda user, llm, assistant: [
        Passing(), user, Passing(), llm, Speech(), assistant, Passing()
    ],
    "nested": lambda user, llm, assistant: [
        Pipeline([Passing(), user]), Pipeline([Pipeline([llm, Passing()])]), assistant
    ],
    "a branch": lambda user, llm, assistant: [
        ParallelPipeline([Passing()], [user, llm, Passing(), assistant])
    ],
    "a branch between": lambda user, llm, assistant: [
        user, ParallelPipeline([llm], [Passing()]), assistant
    ],
}  # fmt: skip


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
async def test_a_pipeline_with_an_llm_between_two_aggregators_has_turns(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, build: Any
):
    async def look_up(params: FunctionCallParams, word: str) -> None:
        """Look a word up.

        Args:
            word: The word.
        """
        await params.result_callback({"found": f"{word} in the book"})

    server.reply(ToolCall("look_up", {"word": "dog"}), "Dogs are loyal.", "Cats are not.", "Hi.")
    bot = Bot(new_llm("You argue."), build=build, tools=[look_up])
    requester = await start(job_harness, bot)

    turn = await bot.llm_turn("dogs")

    assert (turn, turn.runs, len(turn.calls)) == ("Dogs are loyal.", 2, 1)
    assert await requester.ask("cats") == {"text": "Cats are not."}
    assert asked(server.requests[2])[-2:] == ["Dogs are loyal.", "cats"]
    assert await bot.hear("hello") == "Hi."


@pytest.mark.every_bus
async def test_the_job_of_a_pipeline_worker_ends_with_its_turn_on_every_bus(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("fish"), Failure(400, "out of order"))
    server.on(last_asked("cats"), "Cats are aloof.")
    bot = Bot(new_llm("You argue."), build=BUILDS["with others"])
    requester = await start(job_harness, bot)
    asking = asyncio.create_task(requester.ask("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)

    await cancelled(asking)
    with pytest.raises(JobError, match="out of order"):
        await requester.ask("fish")

    await dogs.wait_hung_up()
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


async def test_a_frame_that_the_handler_queues_starts_a_turn_of_its_job(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("fish"), Failure(400, "out of order"))
    server.on(last_asked("cats"), "Cats are aloof.")
    requester = await start(job_harness, Bot(new_llm("You argue.")))
    asking = asyncio.create_task(requester.ask_seed("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)

    await cancelled(asking)
    await dogs.wait_hung_up()
    with pytest.raises(JobError, match="out of order"):
        await requester.ask_seed("fish")

    assert await requester.ask_seed("cats") == {"text": "Cats are aloof."}


# A bot that speaks


class Talking:
    """A bot with speech, and a job whose text the bot speaks."""

    def __init__(self, llm: OpenAILLMService):
        self.speech = Speech()
        self.bot = Bot(llm, build=lambda user, llm, assistant: [user, llm, self.speech, assistant])

    async def speak(self, requester: Requester) -> asyncio.Task[dict[str, Any]]:
        self.speech.spoken.clear()
        asking = asyncio.create_task(requester.ask("dogs"))
        await self.speech.speaking.wait()
        return asking


async def test_the_text_of_a_turn_is_spoken_before_the_turn_ends(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.", "Cats are aloof.")
    talking = Talking(new_llm("You talk."))
    requester = await start(job_harness, talking.bot)
    asking = await talking.speak(requester)

    assert talking.speech.text == "Dogs are loyal."
    assert not asking.done()
    assert await talking.bot.llm_turn("cats", fresh=True) == "Cats are aloof."
    talking.speech.spoken.set()

    assert await asking == {"text": "Dogs are loyal."}
    assert talking.speech.text == "Dogs are loyal."
    assert asked(server.requests[-1]) == ["cats"]


async def test_cancelling_the_job_ends_the_speech_of_its_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), "Dogs are loyal.")
    server.on(last_asked("cats"), "Cats are aloof.")
    talking = Talking(new_llm("You talk."))
    requester = await start(job_harness, talking.bot)
    asking = await talking.speak(requester)

    await cancelled(asking)
    await talking.speech.interrupted.wait()
    talking.speech.spoken.set()

    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


@pytest.mark.parametrize("source", ["user", "speech", "assistant"])
async def test_an_interruption_ends_the_job_s_turn_wherever_it_comes_from(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM, source: str
):
    server.on(last_asked("dogs"), LONG)
    server.on(last_asked("cats"), "Cats are aloof.")
    talking = Talking(new_llm("You talk."))
    requester = await start(job_harness, talking.bot)
    asking = asyncio.create_task(requester.ask("dogs"))
    (dogs,) = await server.wait_for_requests(1)
    await dogs.wait_token(1)

    processors: dict[str, FrameProcessor] = {
        "user": talking.bot.user,
        "speech": talking.speech,
        "assistant": talking.bot.assistant,
    }
    await processors[source].broadcast_frame(InterruptionFrame)

    with pytest.raises(JobCancelledError, match="interrupted"):
        await asking
    await dogs.wait_hung_up()
    assert await requester.ask("cats") == {"text": "Cats are aloof."}
    assert asked(server.requests[-1]) == ["cats"]


async def test_an_interruption_of_the_speech_ends_the_job_s_turn(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.")
    talking = Talking(new_llm("You talk."))
    requester = await start(job_harness, talking.bot)
    asking = await talking.speak(requester)

    await talking.bot.user.broadcast_frame(InterruptionFrame)

    with pytest.raises(JobCancelledError, match="interrupted"):
        await asking


async def test_a_function_of_a_pipeline_worker_cannot_wait_for_its_own_llm(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    bots: list[Bot] = []
    refusals: asyncio.Queue[InvalidJobError] = asyncio.Queue()

    async def ponder(params: FunctionCallParams) -> None:
        """Think."""
        try:
            await bots[0].llm_turn("dogs")
        except InvalidJobError as error:
            refusals.put_nowait(error)
        await params.result_callback(await bots[0].llm_turn("cats", fresh=True))

    server.on(last_asked("hello"), ToolCall("ponder"), repeat=False)
    server.on(last_asked("cats"), "Cats are aloof.")
    server.on(lambda request: request.mentions("Cats are aloof."), "I see.")
    bots.append(Bot(new_llm("You talk."), tools=[ponder]))
    await start(job_harness, *bots)

    assert await bots[0].hear("hello") == "I see."
    assert "the LLM that waits for the tool" in str(refusals.get_nowait())


async def test_a_bot_with_real_speech_says_its_turns_until_the_job_is_cancelled(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), " ".join(f"Dog number {number} barks." for number in range(40)))
    server.on(last_asked("cats"), "Cats are aloof.")
    voice, speaker = Voice(), Speaker()
    bot = Bot(
        new_llm("You talk."),
        build=lambda user, llm, assistant: [user, llm, voice, speaker, assistant],
    )
    speaks = asyncio.Event()

    def note_speech(_: object, frame: Frame) -> None:
        if isinstance(frame, BotStartedSpeakingFrame):
            speaks.set()

    bot.assistant.add_event_handler("on_after_process_frame", note_speech)
    requester = await start(job_harness, bot)
    asking = asyncio.create_task(requester.ask("dogs"))
    await speaks.wait()

    await cancelled(asking)
    played, requested = speaker.played, voice.spoken
    said = await bot.hear("cats")

    assert said == "Cats are aloof."
    assert asked(server.requests[-1]) == ["cats"]
    assert voice.spoken > requested
    # The rest of the dogs would take a minute.
    assert played < speaker.played < played + 20


async def test_a_turn_whose_frame_a_processor_keeps_ends_with_its_timeout(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Keeping(Passing):
        async def push_frame(self, frame: Frame, *args: Any, **keywords: Any) -> None:
            topics = isinstance(frame, LLMContextFrame) and frame.context.messages
            if not topics or topics[-1]["content"] != "dogs":
                await super().push_frame(frame, *args, **keywords)

    server.reply("Cats are aloof.")
    bot = Bot(
        new_llm("You talk."),
        build=lambda user, llm, assistant: [user, Keeping(), llm, assistant],
    )
    await start(job_harness, bot)

    with pytest.raises(LLMTurnTimeoutError):
        await bot.llm_turn("dogs", timeout=0.2)

    assert await bot.llm_turn("cats") == "Cats are aloof."
    assert asked(server.requests[-1]) == ["cats"]


# Pipelines without the one LLM that a turn needs


async def test_a_pipeline_without_an_llm_between_aggregators_refuses_a_turn(
    job_harness: JobHarness,
):
    worker = PipelineWorker(Pipeline([Passing()]), name="debater")
    await start(job_harness, worker)

    with pytest.raises(InvalidJobError, match="no LLM service between the two aggregators"):
        await worker.llm_turn("dogs")
    with pytest.raises(InvalidJobError, match="no LLM service between the two aggregators"):
        await worker.hear("dogs")
    with pytest.raises(InvalidJobError, match="0 LLM services in its pipeline"):
        await worker.llm_turn("dogs", fresh=True)


async def test_a_pipeline_with_two_llms_between_aggregators_refuses_a_turn(
    job_harness: JobHarness, new_llm: NewLLM
):
    other = new_llm("You judge.")
    bot = Bot(
        new_llm("You talk."),
        build=lambda user, llm, assistant: [user, ParallelPipeline([llm], [other]), assistant],
    )
    await start(job_harness, bot)

    with pytest.raises(InvalidJobError, match="has 2 LLM services between two aggregators"):
        await bot.llm_turn("dogs")
    with pytest.raises(InvalidJobError, match=f"2 LLM services in its pipeline .*{other.name}"):
        await bot.llm_turn("dogs", fresh=True)


async def test_aggregators_of_two_contexts_do_not_make_a_pair(
    job_harness: JobHarness, new_llm: NewLLM
):
    stray, _ = LLMContextAggregatorPair(LLMContext())
    bot = Bot(new_llm("You talk."), build=lambda user, llm, assistant: [stray, llm, assistant])
    await start(job_harness, bot)

    with pytest.raises(InvalidJobError, match="no LLM service between the two aggregators"):
        await bot.llm_turn("dogs")


async def test_an_llm_worker_whose_pipeline_has_aggregators_has_turns_with_its_tools(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    class Host(LLMWorker):
        @tool
        async def look_up(self, params: FunctionCallParams) -> None:
            """Look it up."""
            await params.result_callback({"found": "dogs"})

    server.reply(ToolCall("look_up"), "Dogs are loyal.")
    llm = new_llm("You argue.")
    user, assistant = LLMContextAggregatorPair(LLMContext())
    host = Host("debater", llm=llm, pipeline=Pipeline([user, llm, assistant]))
    await start(job_harness, host)

    turn = await host.llm_turn("dogs")

    assert turn == "Dogs are loyal."
    assert [call.result for call in turn.calls] == [{"found": "dogs"}]
