"""Pipecat's own evaluator judges two bots, by the scenarios under evals/."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.bot_process import BOT, PIPECAT, RECEPTIONIST, ROOT, BotProcess, bot_environment

EVALS = ROOT / "evals"


@dataclass(frozen=True)
class Subject:
    """A bot, and the scenarios by which it is judged."""

    command: Sequence[str]
    folder: Path
    scenarios: Sequence[str]


DEBATE = Subject(
    BOT, EVALS, ("debate/three_sides", "failing/without_the_critic", "interrupted/another_topic")
)
CONVERSATION = Subject(
    RECEPTIONIST,
    EVALS / "receptionist",
    (
        "interrupted/told_again",
        "late/told_in_silence",
        "question/answered_in_words",
        "steer/added_to_the_order",
    ),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PIPECAT < (1, 14),
        reason="the scenarios are written for the evaluator of the newest Pipecat",
    ),
]


@dataclass(frozen=True)
class Verdict:
    exit_code: int
    report: str


def start(subject: Subject) -> BotProcess:
    # Quicker than people, but slow enough to be interrupted in the middle.
    return BotProcess(subject.command, DEBATE_TEMPO="0.3")


async def evaluate(bot: BotProcess, scenarios: Path, logs: Path) -> Verdict:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("pipecat"),
        *("eval", "run", scenarios, "--bot-url", f"ws://{bot.host}/ws", "--logs-dir", logs),
        env=bot_environment(COLUMNS="200"),
        stdout=PIPE,
        stderr=STDOUT,
    )
    report, _ = await process.communicate()
    assert process.returncode is not None
    return Verdict(process.returncode, report.decode())


@pytest.mark.parametrize("subject", [DEBATE, CONVERSATION], ids=["debate", "receptionist"])
async def test_every_scenario_passes(subject: Subject, tmp_path: Path):
    async with start(subject) as bot:
        verdict = await evaluate(bot, subject.folder, tmp_path)

        assert verdict.exit_code == 0, f"{verdict.report}\n{bot.log}"
        for scenario in subject.scenarios:
            assert f"✓ ws://{bot.host}/ws {scenario} " in verdict.report
        number = len(subject.scenarios)
        assert f"{number}/{number} passed" in verdict.report


async def test_a_bot_that_does_not_say_the_expected_text_fails_the_scenario(tmp_path: Path):
    """All debaters run, so the summary does not name a missing one."""
    failing = (EVALS / "failing.yaml").read_text(encoding="utf-8")
    whole = failing.replace(" without the critic.", ".")
    scenario = tmp_path / "whole.yaml"
    scenario.write_text(whole, encoding="utf-8")

    async with start(DEBATE) as bot:
        verdict = await evaluate(bot, scenario, tmp_path)

    assert verdict.exit_code == 1, verdict.report
    assert "turn 1 llm_response text_mismatch" in verdict.report
