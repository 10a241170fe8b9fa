"""What the README shows runs, and is true."""

import asyncio
import re
from typing import Any

import pytest
from support.llm_workers import NewLLM, new_llm
from support.snippets import ROOT, blocks, load, play, programs

from pipecat_jobs import ReportChange, ReportState
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

README = ROOT / "README.md"

#: Every command, and the test that runs it.
COMMANDS = {
    "pip install .": "`make test-lowest` installs the wheel that it builds",
    "LOGURU_LEVEL=WARNING python library.py": "test_the_program_and_its_parts_run_as_pasted",
}
#: The same for those in the table of what to try.
TARGETS = {
    "make demo": "`make test` runs the same without a terminal; test_example_debate.py with one",
    "make voice": "test_voice_bot.py starts the same",
    "make demo-distributed": "test_example_distributed.py; `make test` runs it without a terminal",
}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 200


def test_commands_are_all_run_by_the_tests():
    commands = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    assert sorted(commands) == sorted(COMMANDS)
    targets = re.findall(r"^\| `(make .*?)` \|", README.read_text(), re.MULTILINE)
    assert targets == list(TARGETS)
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target.removeprefix("make ") for target in targets} <= set(rules)


async def test_the_program_and_its_parts_run_as_pasted():
    (program,) = programs("README.md").values()
    await play(program)


@pytest.fixture
def names() -> dict[str, Any]:
    """The names that the program and its parts define."""
    return load("README.md", "library.py")


async def test_the_llm_calls_the_job_and_reads_its_response(
    names: dict[str, Any],
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    bot = names["Bot"]("bot", llm=new_llm("You help readers."))
    await job_harness.start(names["Library"]("harbour"), bot)
    scripted_llm.reply(ToolCall("find_book", {"title": "Emma"}), "On shelf 7.")
    assert await bot.hear("Where is Emma?") == "On shelf 7."
    assert scripted_llm.requests[-1].mentions("Emma is on shelf 7 at the harbour")


async def test_the_result_of_the_background_tool_is_said(
    names: dict[str, Any],
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    capsys: pytest.CaptureFixture[str],
):
    guide = names["Guide"]("guide", llm=new_llm("You guide readers."))
    said = asyncio.Event()

    def note_said(_: object, change: ReportChange) -> None:
        if change.state is ReportState.SAID:
            said.set()

    guide.add_event_handler("on_report_changed", note_said)
    await job_harness.start(names["Library"]("castle"), guide)
    call = ToolCalls(ToolCall("find_book", {"title": "Emma"}), text="I will look.")
    scripted_llm.reply(call, "It is on shelf 7.")
    assert await guide.hear("Where is Emma?") == "I will look."
    await said.wait()
    assert scripted_llm.requests[-1].mentions("Emma is on shelf 7 at the castle")
    # Without speech there is no state between the two.
    assert capsys.readouterr().out.split() == ["waiting", "offered", "said"]


async def test_the_llm_does_the_job(
    names: dict[str, Any],
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    host, critic = names["Host"]("host"), names["Critic"]("critic", llm=new_llm("You review."))
    await job_harness.start(host, critic)
    scripted_llm.reply("A fine book.")
    review = names["Critic"].review.request(title="Emma")
    assert await host.job("critic", review, timeout=60) == "A fine book."


async def test_the_kitchen_cooks_the_orders_of_a_table_one_after_the_other(
    names: dict[str, Any], job_harness: JobHarness
):
    host, kitchen = names["Host"]("host"), names["Kitchen"]("kitchen")
    await job_harness.start(host, kitchen)
    cook = names["Kitchen"].cook.request
    orders = [host.job("kitchen", cook(table=4, dish=dish)) for dish in ("soup", "fish")]
    assert await asyncio.gather(*orders) == ["soup for table 4", "fish for table 4"]
