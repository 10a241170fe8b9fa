"""The tutorial can be followed: each program prints what the page shows, and the tests pass."""

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner import utils
from support.snippets import PRINTS, snippets

from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, run_virtual
from pipecat_jobs.testing.voice import SimulatedUser, VoiceOutput

PAGE = snippets("docs/tutorial/first-bot.md")
FILES = {each.title: each.code for each in PAGE if each.title not in (None, "bot.py", PRINTS)}
BOTS = [each.code for each in PAGE if each.title == "bot.py"]
PRINTED = [each.code for each in PAGE if each.title == PRINTS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, from which modules are imported."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bot.py"])
    # The modules are others in each test.
    for name in ("model", "bot", "test_bot", "voice", "local_speech"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for title, code in FILES.items():
        (tmp_path / title).write_text(code)
    (tmp_path / "bot.py").write_text(BOTS[-1])
    return tmp_path


def test_the_page_has_four_bots_and_what_each_prints():
    assert len(BOTS) == len(PRINTED) == 4


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_each_bot_prints_what_the_page_shows(
    step: int, folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "bot.py").write_text(BOTS[step - 1])
    run_virtual(importlib.import_module("bot").main())
    assert capsys.readouterr().out == PRINTED[step - 1]


def test_a_tool_that_is_too_slow_ends_as_the_page_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "bot.py").write_text(BOTS[1].replace("timeout=10", "timeout=1"))
    run_virtual(importlib.import_module("bot").main())
    (shown,) = [each.code for each in PAGE if each.language == "text" and each.title is None]
    assert capsys.readouterr().out == shown


@pytest.mark.usefixtures("folder")
def test_the_bot_says_other_lines_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
):
    (folder / "bot.py").write_text(BOTS[0])
    monkeypatch.setattr(sys, "argv", ["bot.py", "Hello!", "Are you open?"])
    run_virtual(importlib.import_module("bot").main())
    said = "you: Hello!\nbot: How can I help?\nyou: Are you open?\nbot: How can I help?\n"
    assert capsys.readouterr().out == said


async def test_with_a_key_the_same_bot_has_a_real_model(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scripted_llm: ScriptedLLMServer,
):
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", scripted_llm.base_url)
    (folder / "bot.py").write_text(BOTS[1])
    scripted_llm.reply(ToolCall("find_book", {"title": "Emma"}), "You find it on shelf 7.")
    await importlib.import_module("bot").main()
    assert capsys.readouterr().out == "you: Where is Emma?\nbot: You find it on shelf 7.\n"
    first, last = scripted_llm.requests
    assert first.tools == ["find_book"]
    assert last.mentions("Emma is on shelf 7")


@pytest.mark.usefixtures("folder")
def test_the_library_finds_a_book_on_the_virtual_clock():
    importlib.import_module("test_bot").test_the_library_finds_a_book()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "name",
    [
        "test_the_librarian_says_what_the_library_finds",
        "test_an_interruption_stops_the_search",
    ],
)
async def test_the_other_tests_of_the_page_pass(
    name: str, job_harness: JobHarness, scripted_llm: ScriptedLLMServer
):
    test: Callable[[JobHarness, ScriptedLLMServer], Awaitable[None]]
    test = getattr(importlib.import_module("test_bot"), name)
    await test(job_harness, scripted_llm)


class Transport:
    """The transport of a user who speaks, and hears the bot."""

    def __init__(self, user: SimulatedUser, voice: VoiceOutput):
        self._user = user
        self._voice = voice
        self._handlers: dict[str, Callable[..., Awaitable[None]]] = {}

    def input(self) -> FrameProcessor:
        return self._user

    def output(self) -> FrameProcessor:
        return self._voice

    def event_handler(self, name: str) -> Callable[[Any], Any]:
        return lambda handler: self._handlers.setdefault(name, handler)

    async def disconnect(self) -> None:
        await self._handlers["on_client_disconnected"](self, "the client")


def test_the_bot_of_the_last_step_is_spoken_with(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async def talk() -> list[str]:
        user, voice = SimulatedUser(), VoiceOutput()
        transport = Transport(user, voice)

        async def create_transport(arguments: object, params: dict[str, Any]) -> Transport:
            assert params["webrtc"]().audio_in_enabled
            return transport

        speech = ModuleType("local_speech")
        speech.whisper_stt = speech.HibariTTSService = IdentityFilter
        monkeypatch.setitem(sys.modules, "local_speech", speech)
        monkeypatch.setattr(utils, "create_transport", create_transport)
        talking = asyncio.create_task(importlib.import_module("voice").bot(None))
        await asyncio.sleep(1)
        await user.say("Please order Emma.")
        await user.until_bot_silent(7)
        await user.say("Please order Persuasion.")
        await user.until_bot_speaks(0.7)
        await user.until_bot_silent(1)
        await user.say("Where is Emma?")
        await user.until_bot_silent(20)
        await transport.disconnect()
        await talking
        return [speech.text for speech in voice.speeches]

    said = run_virtual(talk())
    assert said == [
        "I will order it.",
        "Emma comes on Friday.",
        "I will order it.",
        # The order has come while the library looked for the other book.
        "Persuasion comes on Friday. Emma is on shelf 7.",
    ]
