"""Random conversations in which a bot reports: said once, and never over the user."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.schedules import schedules

from benchmarks.restaurant import (
    OURS,
    Bot,
    Mind,
    OurBot,
    count_words_over_user,
    running,
    telling,
)
from pipecat_jobs.conversation import Receipt, ReportState
from pipecat_jobs.testing import run_virtual

#: Seconds of silence at the end, in which everything can be said that waits.
SILENCE = 60.0


@dataclass(frozen=True)
class Utterance:
    """What the user says."""

    pause: float
    #: What the pause follows.
    after: Literal["own words", "speech of bot", "first word of bot"]
    words: int


@dataclass(frozen=True)
class Report:
    """A report, or a silent one about an order that is not ready."""

    at: float
    silent: bool


@dataclass(frozen=True)
class Story:
    """A conversation, before it is played."""

    utterances: Sequence[Utterance]
    reports: Sequence[Report]
    #: How the LLM decides what to say; see `Mind`.
    rereads: bool


@dataclass(frozen=True)
class Played:
    """A conversation that was played."""

    bot: Bot
    #: The receipts, by the number in the report.
    receipts: dict[int, Receipt]
    #: The states before the session ended.
    states: dict[int, ReportState]

    def count_tellings(self, number: int) -> int:
        return sum(speech.text.count(telling(number)) for speech in self.bot.voice.speeches)


async def play(story: Story) -> Played:
    async with running(OURS, {}, Mind(rereads=story.rereads)) as (bot, _):
        assert isinstance(bot, OurBot)
        receipts: dict[int, Receipt] = {}

        async def report() -> None:
            now = asyncio.get_running_loop().time
            for number, each in enumerate(sorted(story.reports, key=lambda each: each.at)):
                await asyncio.sleep(max(0.0, each.at - now()))
                content = {"cooking" if each.silent else "ready": number}
                receipts[number] = await bot.report(content, silent=each.silent, expires_after=None)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(report())
            for utterance in story.utterances:
                if utterance.after == "speech of bot":
                    await bot.user.until_bot_silent(utterance.pause)
                elif utterance.after == "first word of bot":
                    await bot.user.until_bot_speaks(utterance.pause)
                else:
                    await asyncio.sleep(utterance.pause)
                await bot.user.say(" ".join(["so"] * utterance.words))
        await asyncio.sleep(SILENCE)
        states = {number: receipt.state for number, receipt in receipts.items()}
    return Played(bot, receipts, states)


# No two of these moments, nor what follows them in steps of a tenth of a second, are ever the same.
# When the user goes on at the very instant at which Pipecat ends the turn, it does not interrupt.
MOMENTS = st.integers(0, 200).map(lambda tenths: tenths / 10 + 0.05)
PAUSES = st.integers(1, 60).map(lambda tenths: tenths / 10 + 0.03)
STORIES = st.builds(
    Story,
    utterances=st.lists(
        st.builds(
            Utterance,
            pause=PAUSES,
            after=st.sampled_from(["own words", "speech of bot", "first word of bot"]),
            words=st.integers(1, 5),
        ),
        # With more, the bot may be interrupted as often as a report is offered.
        max_size=4,
    ),
    reports=st.lists(st.builds(Report, at=MOMENTS, silent=st.booleans()), min_size=1, max_size=5),
    rereads=st.booleans(),
)


@pytest.mark.schedules
@schedules(60)
@given(STORIES)
def test_each_report_is_said_once_in_a_silence_and_settles_once(story: Story):
    played = run_virtual(play(story))

    for number, report in enumerate(sorted(story.reports, key=lambda each: each.at)):
        receipt = played.receipts[number]
        settled = [change.state for change in receipt.history if change.state.settled]
        assert settled == [receipt.state]
        if not report.silent:
            assert played.count_tellings(number) == 1
            assert played.states[number] in (ReportState.SAID, ReportState.COVERED)
    bot = played.bot
    assert count_words_over_user(bot) == 0
    assert not any(new == {"update"} for new in bot.mind.runs)
