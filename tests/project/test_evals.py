"""Pipecat's own evaluator judges the voice bot, by the scenarios under evals/."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.bot_process import PIPECAT, ROOT, BotProcess, bot_environment

EVALS = ROOT / "evals"
SCENARIOS = ("debate/three_sides", "failing/without_the_critic", "interrupted/another_topic")

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


@pytest.fixture
async def bot() -> AsyncIterator[BotProcess]:
    # Quicker than people, but slow enough to be interrupted in the middle.
    async with BotProcess(DEBATE_TEMPO="0.3") as bot:
        yield bot


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


async def test_every_scenario_passes(bot: BotProcess, tmp_path: Path):
    verdict = await evaluate(bot, EVALS, tmp_path)

    assert verdict.exit_code == 0, f"{verdict.report}\n{bot.log}"
    for scenario in SCENARIOS:
        assert f"✓ ws://{bot.host}/ws {scenario} " in verdict.report
    assert f"{len(SCENARIOS)}/{len(SCENARIOS)} passed" in verdict.report


async def test_a_bot_that_does_not_say_the_expected_text_fails_the_scenario(
    bot: BotProcess, tmp_path: Path
):
    """All debaters run, so the summary does not name a missing one."""
    failing = (EVALS / "failing.yaml").read_text(encoding="utf-8")
    whole = failing.replace(" without the critic.", ".")
    scenario = tmp_path / "whole.yaml"
    scenario.write_text(whole, encoding="utf-8")

    verdict = await evaluate(bot, scenario, tmp_path)

    assert verdict.exit_code == 1, verdict.report
    assert "turn 1 llm_response text_mismatch" in verdict.report
