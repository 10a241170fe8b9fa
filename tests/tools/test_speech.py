"""Texts that the bot says while a tool waits: only in silence, and never after the result."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from support.tools_stage import Colleague, Stage, calls_debate, raise_stage, scripted_service

from pipecat_jobs import JobToolProgress, LLMContextWorker, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, run_virtual
from pipecat_jobs.testing.fixtures import LogRecord

WAIT = "One moment."


class Scene:
    """A call whose job runs until it is released, on the virtual clock."""

    def __init__(self, stage: Stage, advocate: Colleague):
        self.stage = stage
        self.advocate = advocate
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()

    async def at(self, seconds: float) -> None:
        """Wait until this many seconds have passed since the call."""
        await asyncio.sleep(self._began + seconds - self._clock())

    async def hears(self, frame: Any, direction: Any = FrameDirection.DOWNSTREAM) -> None:
        await self.stage.worker.queue_frame(frame, direction)
        await self.stage.until(lambda: frame.id in self.stage.seen)


Play = Callable[..., Scene]


@pytest.fixture
def play(new_local_bus: Callable[[], WorkerBus]) -> Play:
    def run(story: Callable[[Scene], Awaitable[None]], **options: Any) -> Scene:
        """Run a story with a tool that has these options, and return its scene."""

        class Moderator(LLMContextWorker):
            @job_tool("advocate", job="argue", timeout=300, **options)
            async def debate(self, topic: str):
                """Analyze a topic."""
                return {"topic": topic}

        async def main() -> Scene:
            async with (
                JobHarness(new_local_bus(), timeout=500) as harness,
                ScriptedLLMServer() as server,
            ):
                llm = scripted_service(server)
                calls_debate(server)
                advocate = Colleague("advocate", holds=True)
                worker = Moderator("moderator", llm=llm, active=True)
                stage = await raise_stage(harness, worker, advocate)
                await stage.say()
                await advocate.started.get()
                scene = Scene(stage, advocate)
                await story(scene)
                advocate.release.set()
                await stage.until_settled()
                await server.wait_for_requests(2)
                said = list(stage.spoken)
                await scene.at(200)
                assert stage.spoken == said
                await worker.flush_pipeline()
                await llm._client.close()
                await harness.cancel(worker)
                return scene

        return run_virtual(main())

    return run


def test_the_bot_speaks_once_after_the_silence(play: Play):
    async def story(scene: Scene) -> None:
        await scene.at(4.9)
        assert scene.stage.spoken == []
        await scene.at(5.1)
        assert scene.stage.spoken == [WAIT]
        await scene.at(100)

    assert play(story, say_after=5, say=WAIT).stage.spoken == [WAIT]


def test_the_bot_speaks_again_at_an_interval(play: Play):
    async def story(scene: Scene) -> None:
        await scene.at(25.9)

    assert play(story, say_after=5, say=WAIT, say_every=10).stage.spoken == [WAIT] * 3


def test_several_texts_are_said_in_turn_and_then_again_from_the_first(play: Play):
    async def story(scene: Scene) -> None:
        await scene.at(36)

    texts = ("One moment.", "Still looking.", "Nearly there.")
    scene = play(story, say_after=5, say=texts, say_every=10)
    assert scene.stage.spoken == [*texts, texts[0]]


def test_the_bot_says_nothing_while_its_code_holds_the_floor(play: Play):
    async def story(scene: Scene) -> None:
        async with scene.stage.worker.floor.hold():
            await scene.at(20)
            assert scene.stage.spoken == []
        await scene.at(26)

    assert play(story, say_after=5, say=WAIT).stage.spoken == [WAIT]


def test_the_bot_says_nothing_when_the_result_comes_first(play: Play):
    async def story(scene: Scene) -> None:
        await scene.at(4.9)

    assert play(story, say_after=5, say=WAIT).stage.spoken == []


def test_the_default_text_says_that_the_bot_waits_for_the_result(play: Play):
    async def story(scene: Scene) -> None:
        await scene.at(6)

    (text,) = play(story, say_after=5).stage.spoken
    assert "waiting for the result" in text


USER = (UserStartedSpeakingFrame, UserStoppedSpeakingFrame, FrameDirection.DOWNSTREAM)
BOT = (BotStartedSpeakingFrame, BotStoppedSpeakingFrame, FrameDirection.UPSTREAM)


@pytest.mark.parametrize(("starts", "stops", "direction"), [USER, BOT], ids=["user", "bot"])
def test_the_bot_waits_until_all_speech_ends_and_for_the_whole_silence_after_it(
    play: Play, starts: Any, stops: Any, direction: FrameDirection
):
    async def story(scene: Scene) -> None:
        await scene.at(4)
        await scene.hears(starts(), direction)
        await scene.at(30)
        assert scene.stage.spoken == []
        await scene.hears(stops(), direction)
        await scene.at(34.9)
        assert scene.stage.spoken == []
        await scene.at(35.1)
        assert scene.stage.spoken == [WAIT]

    play(story, say_after=5, say=WAIT)


@pytest.mark.parametrize(("starts", "stops", "direction"), [USER, BOT], ids=["user", "bot"])
def test_short_speech_restarts_the_silence(
    play: Play, starts: Any, stops: Any, direction: FrameDirection
):
    async def story(scene: Scene) -> None:
        await scene.at(4)
        await scene.hears(starts(), direction)
        await scene.hears(stops(), direction)
        await scene.at(8.9)
        assert scene.stage.spoken == []
        await scene.at(9.1)
        assert scene.stage.spoken == [WAIT]

    play(story, say_after=5, say=WAIT)


def test_silence_means_that_neither_user_nor_bot_speaks(play: Play):
    async def story(scene: Scene) -> None:
        await scene.hears(UserStartedSpeakingFrame())
        await scene.hears(BotStartedSpeakingFrame(), FrameDirection.UPSTREAM)
        await scene.hears(UserStoppedSpeakingFrame())
        await scene.at(20)
        assert scene.stage.spoken == []
        await scene.hears(BotStoppedSpeakingFrame(), FrameDirection.UPSTREAM)
        await scene.at(26)
        assert scene.stage.spoken == [WAIT]

    play(story, say_after=5, say=WAIT)


@pytest.mark.parametrize("frame", [UserSpeakingFrame, BotSpeakingFrame])
def test_speech_that_began_before_the_watch_is_noticed(play: Play, frame: Any):
    async def story(scene: Scene) -> None:
        await scene.at(1)
        await scene.hears(frame())
        await scene.at(20)
        assert scene.stage.spoken == []

    play(story, say_after=5, say=WAIT)


def test_a_say_function_gets_the_progress_and_may_say_nothing(play: Play):
    seen: list[JobToolProgress] = []

    def words(progress: JobToolProgress) -> str | None:
        seen.append(progress)
        percent = progress.updates.get("advocate", {}).get("percent")
        return f"{percent} percent." if percent else None

    async def story(scene: Scene) -> None:
        await scene.at(6)
        (job_id,) = scene.stage.worker.job_groups
        await scene.advocate.send_job_update(job_id, {"percent": 40})
        await scene.at(11)

    scene = play(story, say_after=5, say=words, say_every=5)

    assert scene.stage.spoken == ["40 percent."]
    assert [round(progress.seconds) for progress in seen] == [5, 10]
    assert [progress.responses for progress in seen] == [{}, {}]


@pytest.mark.parametrize("words", [lambda _: 7, lambda progress: progress.nonsense])
def test_a_say_function_that_fails_is_logged_and_the_tool_goes_on(
    play: Play, job_log: list[LogRecord], words: Any
):
    async def story(scene: Scene) -> None:
        await scene.at(6)

    scene = play(story, say_after=5, say=words)

    assert scene.stage.spoken == []
    assert scene.stage.results == [{"text": "advocate says"}]
    assert [r.level for r in job_log if r.message.startswith("say of tool debate")] == ["ERROR"]
