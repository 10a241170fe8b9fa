"""The guest and the receptionist speak, with simulated voices, and the guest talks over her."""

import asyncio
from collections.abc import Sequence
from operator import itemgetter

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair

from examples.receptionist.script import DUCK, DUCK_TIME, WATER, WINE, WITH_SAUCE, play
from examples.receptionist.stage import Reports, make_receptionist, running
from pipecat_jobs import ReportState
from pipecat_jobs.testing.voice import (
    ScriptedLLM,
    SimulatedUser,
    Speech,
    VoiceOutput,
    turns_of_simulated_user,
)


async def speak() -> list[str]:
    """Play the conversation; return its transcript."""
    guest, voice = SimulatedUser(), VoiceOutput()
    context = LLMContextAggregatorPair(LLMContext(), user_params=turns_of_simulated_user())
    receptionist = make_receptionist(ScriptedLLM(play), context, ears=[guest], mouth=[voice])
    reports = Reports(receptionist)
    async with running(receptionist, pace=5), asyncio.timeout(600):
        await guest.say(DUCK_TIME.text)
        await guest.until_bot_silent(2)
        # While the kitchen is asked.
        await guest.say(WINE.text)
        await reports.until(ReportState.SPEAKING)
        await asyncio.sleep(0.7)
        # Over the words of the kitchen, which come again.
        await guest.say(WATER.text)
        await reports.until(ReportState.SAID)
        await guest.say(DUCK.text)
        # The kitchen asks back.
        await reports.until(ReportState.SAID)
        await guest.say(WITH_SAUCE.text)
        await reports.until(ReportState.SAID)
    return write_transcript(guest.speeches, voice.speeches, reports)


def write_transcript(
    guest: Sequence[Speech], receptionist: Sequence[Speech], reports: Reports
) -> list[str]:
    """Write a line for each speech and each change of a report; "--" marks what was cut off."""
    spoken = [("guest", speech) for speech in guest]
    spoken += [("receptionist", speech) for speech in receptionist]
    lines = [
        (speech.began, f"{who}: {speech.text}{' --' if speech.interrupted else ''}")
        for who, speech in spoken
    ]
    # The changes of a report at the same time keep their order.
    lines = sorted([*lines, *reports.lines], key=itemgetter(0))
    return [f"{time:5.1f} {line}" for time, line in lines]
