"""Reports in the pipeline of a bot with a voice, beside what else happens there."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pipecat.bus import AsyncQueueBus
from pipecat.frames import frames
from pipecat.frames.frames import (
    FrameProcessorPauseUrgentFrame,
    FrameProcessorResumeUrgentFrame,
    LLMMessagesUpdateFrame,
    StopFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregatorParams
from pipecat.turns.user_mute import AlwaysUserMuteStrategy
from pipecat.turns.user_start import MinWordsUserTurnStartStrategy, VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from support.voice_talk import Host, Reply, Talk, play, say_news, states

from pipecat_jobs.conversation import FloorHolder, ReportState
from pipecat_jobs.testing.voice import VoiceOutput, turns_of_simulated_user

LONG = "the very long report about the order"


class EagerUser:
    """A transcription service that predicts the end of the user's turn."""

    def __init__(self, talk: Talk):
        self._push = talk.user.push_frame

    async def predict(self, text: str) -> None:
        await self._push(frames.ProposedUserStartedSpeakingFrame())
        # Not at a full half second, when Pipecat also looks whether the turn has ended.
        await asyncio.sleep(1.1)
        await self._push(frames.EagerTranscriptionFrame(text, "user", time_now_iso8601()))

    async def go_on(self) -> None:
        await self._push(frames.EagerEndOfTurnCancelFrame())

    async def end(self, text: str) -> None:
        await self._push(frames.TranscriptionFrame(text, "user", time_now_iso8601()))
        await self._push(frames.ProposedUserStoppedSpeakingFrame())


def eager_turns() -> LLMUserAggregatorParams:
    strategies = pytest.importorskip("pipecat.turns.user_turn_strategies")
    if not hasattr(strategies, "EagerUserTurnStrategies"):
        pytest.skip("this Pipecat does not answer before the end of a turn")
    return LLMUserAggregatorParams(user_turn_strategies=strategies.EagerUserTurnStrategies())


def say_nothing(_: object) -> str:
    return ""


def converse(
    story: Callable[[Talk, Host], Awaitable[None]],
    reply: Reply = say_news,
    *,
    voice: type[VoiceOutput] = VoiceOutput,
    user_params: LLMUserAggregatorParams | None = None,
) -> None:
    """Play a story with a bot that has its LLM in its own pipeline."""

    async def main() -> None:
        talk = Talk(AsyncQueueBus(), voice=voice(), user_params=user_params)
        host = Host("bot", reply, talk=talk)
        async with talk.running(host):
            await story(talk, host)

    play(main)


def test_a_text_of_the_bot_before_a_report_is_not_taken_for_the_report():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report(LONG)
        await host.queue_frame(TTSSpeakFrame("one moment"))
        await talk.until_bot_says(2)
        await asyncio.sleep(0.5)
        assert receipt.state is ReportState.SPEAKING
        await talk.user.say("wait")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said[0] == "one moment"
        assert talk.said[-1] == f"news {LONG}"
        assert states(receipt) == [
            "waiting", "offered", "speaking", "interrupted", "offered", "speaking", "said"
        ]  # fmt: skip

    converse(story)


def test_a_text_of_the_bot_that_is_on_its_way_holds_the_floor():
    async def story(talk: Talk, host: Host) -> None:
        await host.queue_frame(TTSSpeakFrame("one moment"))
        await asyncio.sleep(0.05)
        assert talk.voice.speeches == []
        assert host.floor.holder is FloorHolder.LLM
        receipt = await host.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["one moment", "news ready"]
        assert host.floor.holder is None

    converse(story)


def test_a_text_of_the_bot_after_a_report_does_not_change_it():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report("ready")
        await talk.until_bot_says(1)
        await host.queue_frame(TTSSpeakFrame("and a good evening to all of you"))
        assert await receipt.until_settled() is ReportState.SAID
        await asyncio.sleep(30)
        assert talk.said == ["news ready", "and a good evening to all of you"]
        assert host.floor.holder is None

    converse(story)


def test_what_was_heard_of_a_report_right_behind_a_text_of_the_bot():
    class Unpausing(VoiceOutput):
        """Does not stop between two texts, as an output transport that always has sound."""

        async def _end_speech(self, *, interrupted: bool) -> None:
            if interrupted or not self._queue.has_frame(TTSTextFrame):
                await super()._end_speech(interrupted=interrupted)

    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report(LONG)
        await host.queue_frame(TTSSpeakFrame("one moment of your time please"))
        await talk.until_bot_says(1)
        await asyncio.sleep(6 * 0.3 + 1)
        assert receipt.state is ReportState.SPEAKING
        await talk.user.say("wait")
        assert await receipt.until_settled() is ReportState.SAID
        assert receipt.history[3].heard == "news the very"

    converse(story, voice=Unpausing)


def test_an_answer_before_the_end_of_the_turn_leaves_reports_alone():
    async def story(talk: Talk, host: Host) -> None:
        user = EagerUser(talk)
        predicting = asyncio.create_task(user.predict("how are you"))
        await asyncio.sleep(0.5)
        receipt = await host.report("ready")
        await predicting
        await asyncio.sleep(1)
        assert len(host.contexts) == 1
        assert states(receipt) == ["waiting"]
        await user.end("how are you")
        assert await receipt.until_settled() is ReportState.SAID
        assert states(receipt) == ["waiting", "offered", "speaking", "said"]
        assert talk.said == ["you said how are you", "news ready"]
        assert host.floor.holder is None

    converse(story, user_params=eager_turns())


def test_a_lost_answer_before_the_end_of_the_turn_neither_settles_nor_holds_reports():
    async def story(talk: Talk, host: Host) -> None:
        user = EagerUser(talk)
        predicting = asyncio.create_task(user.predict("how are you"))
        await asyncio.sleep(0.5)
        receipt = await host.report("ready")
        await predicting
        await asyncio.sleep(1)
        await user.go_on()
        await asyncio.sleep(1)
        assert states(receipt) == ["waiting"]
        await user.end("how are you doing")
        assert await receipt.until_settled() is ReportState.COVERED
        assert states(receipt) == ["waiting", "offered", "speaking", "covered"]
        assert talk.said == ["news ready and you said how are you doing"]
        assert host.floor.holder is None

    converse(story, user_params=eager_turns())


def test_an_answer_before_the_end_of_the_turn_does_not_see_a_report_that_was_cut_off():
    async def story(talk: Talk, host: Host) -> None:
        user = EagerUser(talk)
        receipt = await host.report(LONG)
        await talk.until_bot_says(1)
        await asyncio.sleep(0.1)
        await user.predict("wait")
        await asyncio.sleep(1)
        await user.end("wait")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said[-2:] == ["you said wait", f"news {LONG}"]

    converse(story, user_params=eager_turns())


def test_a_report_to_which_the_llm_says_nothing_is_in_the_context_of_the_next_run():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert len(host.contexts) == 3
        assert [len(context) for context in host.contexts] == [1, 1, 1]
        assert talk.said == ["news ready"]

    replies = iter([say_nothing, say_nothing, say_news])
    converse(story, lambda messages: next(replies)(messages))


def test_a_speech_service_that_fails_once_has_the_report_offered_again():
    class Failing(VoiceOutput):
        """Loses the text of its first answer."""

        failed = False

        def _add_text(self, text: str) -> None:
            if self.failed:
                super()._add_text(text)

        def _end_text(self) -> None:
            super()._end_text()
            self.failed = True

    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report("ready")
        assert await receipt.until_settled() is ReportState.SAID
        assert receipt.history[2].reason == "its text was not spoken"
        assert talk.said == ["news ready"]
        assert host.floor.holder is None

    converse(story, voice=Failing)


def test_a_user_who_cannot_interrupt_hears_the_report_to_its_end():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report(LONG)
        await talk.until_bot_says(1)
        await talk.user.say("wait")
        assert await receipt.until_settled() is ReportState.SAID
        await asyncio.sleep(30)
        assert talk.said[0] == f"news {LONG}"
        assert sum(LONG in said for said in talk.said) == 1
        assert host.floor.holder is None

    start = VADUserTurnStartStrategy(enable_interruptions=False)
    stop = SpeechTimeoutUserTurnStopStrategy()
    strategies = UserTurnStrategies(start=[start], stop=[stop])
    converse(story, user_params=LLMUserAggregatorParams(user_turn_strategies=strategies))


def test_a_muted_user_does_not_stop_a_report():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report(LONG)
        await talk.until_bot_says(1)
        await asyncio.sleep(0.3)
        await talk.user.say("wait")
        assert await receipt.until_settled() is ReportState.SAID
        await asyncio.sleep(30)
        assert talk.said == [f"news {LONG}"]
        assert host.floor.holder is None

    params = turns_of_simulated_user()
    params.user_mute_strategies = [AlwaysUserMuteStrategy()]
    converse(story, user_params=params)


def test_a_text_that_the_bot_hears_takes_the_report_that_waits_along():
    async def story(talk: Talk, host: Host) -> None:
        async with host.floor.hold():
            receipt = await host.report("ready")
        assert (await host.hear("hello")).strip() == "news ready and you said hello"
        assert await receipt.until_settled() is ReportState.COVERED
        await asyncio.sleep(30)
        assert talk.said == ["news ready and you said hello"]

    converse(story)


def test_a_turn_of_code_and_a_report_are_said_one_after_the_other():
    async def story(talk: Talk, host: Host) -> None:
        asking = asyncio.create_task(host.llm_turn("hello"))
        await asyncio.sleep(0.1)
        receipt = await host.report("ready")
        assert (await asking).strip() == "you said hello"
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["you said hello", "news ready"]

    converse(story)


def test_a_report_whose_message_leaves_the_context_is_offered_again():
    async def story(talk: Talk, host: Host) -> None:
        receipt = await host.report(LONG)
        await talk.until_bot_says(1)
        await asyncio.sleep(0.1)
        saying = asyncio.create_task(talk.user.say("wait a moment please"))
        await asyncio.sleep(0.5)
        summary = {"role": "user", "content": "a summary"}
        await host.queue_frame(LLMMessagesUpdateFrame([summary]))
        await saying
        assert (await receipt.until_settled()) in (ReportState.SAID, ReportState.COVERED)
        await asyncio.sleep(30)
        assert sum(LONG in said for said in talk.said) == 1

    converse(story)


def test_the_pause_of_a_pipeline_delays_a_report():
    async def story(talk: Talk, host: Host) -> None:
        await host.llm.queue_frame(FrameProcessorPauseUrgentFrame(host.llm))
        await asyncio.sleep(0.1)
        receipt = await host.report("ready")
        await asyncio.sleep(5)
        assert states(receipt) == ["waiting", "offered"]
        await host.llm.queue_frame(FrameProcessorResumeUrgentFrame(host.llm))
        assert await receipt.until_settled() is ReportState.SAID
        await asyncio.sleep(30)
        assert talk.said == ["news ready"]

    converse(story)


def test_a_stop_frame_drops_what_waits():
    async def story(talk: Talk, host: Host) -> None:
        async with host.floor.hold():
            receipt = await host.report("ready")
            await host.queue_frame(StopFrame())
            assert await receipt.until_settled() is ReportState.DROPPED
        assert talk.said == []

    converse(story)


def test_a_sound_of_the_user_that_is_not_a_turn_holds_reports_only_while_it_lasts():
    async def story(talk: Talk, host: Host) -> None:
        await talk.user.say("please tell me a story")
        await talk.until_bot_says(1)
        receipt = await host.report("ready")
        # Less than a turn while the bot speaks.
        await talk.user.say("mhm")
        assert await receipt.until_settled() is ReportState.SAID
        assert talk.said == ["you said please tell me a story", "news ready"]
        await talk.user.say("that is good to hear")
        await talk.until_bot_says(3)
        assert host.floor.holder is not FloorHolder.USER

    start, stop = MinWordsUserTurnStartStrategy(min_words=3), SpeechTimeoutUserTurnStopStrategy()
    strategies = UserTurnStrategies(start=[start], stop=[stop])
    converse(story, user_params=LLMUserAggregatorParams(user_turn_strategies=strategies))
