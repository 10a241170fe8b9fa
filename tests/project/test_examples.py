"""Runs every single-file example as a newcomer would, and checks its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

#: The lines that each example must print, in this order, among others.
PRINTED = {
    "single_job.py": [
        "reader: Jane Austen did.",
        "worker 'librarian' failed at job 'find_author': JobToolError: no book is called 'Ema'",
        "status: failed",
    ],
    "job_group.py": [
        "weather: all about the rain in Oslo",
        "sports: all about last night's final",
        "traffic: all about the ring road",
        "job 'report' got no response from 'traffic' within 0.8 s",
        "weather: completed, all about the rain in Oslo",
        "sports: completed, all about last night's final",
        "traffic: timed_out, nothing",
        "host: 2 of three reports, please",
        "weather: all about the rain in Oslo",
        "sports: all about last night's final",
    ],
    "streaming.py": [
        "poet: A word was sent,",
        "poet: and nobody was left to wait.",
        "publisher: 3 lines",
        "printer: page 1 of 3",
        "printer: page 3 of 3",
        "publisher: 3 pages printed",
    ],
    "job_tool.py": [
        "user: a hotel in Oslo",
        "desk: looking for hotels in Oslo",
        "south: my search was stopped",
        "desk: I found Hotel Oslo but south did not answer in time",
        "user: no, wait!",
        "north: my search was stopped",
        "desk: (interrupted)",
        "requests to the LLM: 3",
    ],
    "cancellation.py": [
        "researcher: page 3",
        "open jobs of the host: 1",
        "user: never mind!",
        "host: cancelled while the editor was at it",
        "researcher: stopped after 3 of 1000 pages",
        "researcher: my job was cancelled, tidying up",
        "open jobs of the host: 0",
    ],
}


def run(example: str) -> subprocess.CompletedProcess[str]:
    # The examples set the log level themselves, unless the environment sets it.
    environment = {key: value for key, value in os.environ.items() if key != "LOGURU_LEVEL"}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=250,
        check=False,
    )


def test_every_single_file_example_is_run_here():
    files = {path.name for path in EXAMPLES.glob("*.py")} - {"__init__.py"}
    # The voice bot, what it is made of, and the local LLM have tests of their own.
    others = {"voice_bot.py", "voice_script.py", "local_speech.py", "local_llm.py"}
    assert files - others - {"llama_server.py"} == set(PRINTED)


@pytest.mark.parametrize("example", PRINTED)
def test_the_example_explains_itself_and_ends_by_itself(example: str):
    result = run(example)

    # Pipecat 1.8 downloads data for NLTK, which prints a message without a network.
    errors = result.stderr.splitlines()
    assert [line for line in errors if not line.startswith("[nltk_data]")] == []
    assert result.returncode == 0
    rest = result.stdout
    for text in PRINTED[example]:
        _, found, rest = rest.partition(text)
        assert found, f"{text!r} is missing, or out of order, in:\n{result.stdout}"


@pytest.mark.parametrize("example", PRINTED)
def test_the_example_says_how_to_run_it(example: str):
    assert f"python examples/{example}\n" in (EXAMPLES / example).read_text(encoding="utf-8")
