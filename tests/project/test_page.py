"""The page of the voice bot in headless Chromium, with speech that is synthesized and recognized.

``make test-browser`` installs what these tests need, and runs them alone.
"""

import asyncio
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.bot_process import BOT, SPEAKING_BOT, BotProcess
from support.browser import (
    Microphone,
    needs_browser,
    open_page,
    write_wav,
)
from support.debate_page import DebatePage
from support.recognition import load_recognizer, words
from support.sound import RATE, duration, speech

from examples.debate.script import write_script
from examples.debate.workers import DEBATERS
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Stall, ToolCall, ToolCalls

pytestmark = [pytest.mark.slow, needs_browser]

GREETING = "Which topic shall we debate?"
LAST_WORDS = "Settle that, and the rest is detail."


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedLLMServer]:
    async with ScriptedLLMServer() as server:
        yield server


def new_bot(server: ScriptedLLMServer, command: Sequence[str] = BOT) -> BotProcess:
    """A bot whose LLM is the server of the test."""
    return BotProcess(command, OPENAI_API_KEY="a key", OPENAI_BASE_URL=server.base_url)


@asynccontextmanager
async def visit(bot: BotProcess, **settings: Any) -> AsyncIterator[DebatePage]:
    """Open the page of a bot, and see in the end that all went well in the browser."""
    async with open_page(f"http://{bot.host}/", **settings) as visitor:
        debate = DebatePage(visitor)
        yield debate
        assert visitor.errors == []
        assert {urlsplit(url).netloc for url in visitor.requests} == {bot.host}


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line for the person who runs the tests, without ``-s``."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return tell


@pytest.fixture(scope="module")
def folder() -> Path:
    # Pytest would remove a folder of its own after three more runs of any tests.
    return Path(tempfile.mkdtemp(prefix="page-"))


@pytest.fixture
def album(folder: Path, tell: Callable[[str], None]) -> Path:
    """A folder for pictures and sound of the page, so that one can look and listen."""
    tell(f"Pictures and sound of the page: {folder}")
    return folder


def of_debater(server: ScriptedLLMServer, name: str) -> LLMRequest:
    """The first request of a debater's LLM."""
    return next(request for request in server.requests if DEBATERS[name] in request.system)


async def wait_hung_up(server: ScriptedLLMServer) -> None:
    """Wait until the bot has closed the debaters' connections of the first debate."""
    async with asyncio.timeout(100):
        for name in DEBATERS:
            await of_debater(server, name).wait_hung_up()


def silence(seconds: float) -> bytes:
    return bytes(2 * int(RATE * seconds))


def last_sound(recording: bytes, begin: float, end: float) -> float:
    """Find the last sound between two seconds of a recording, in seconds after the first."""
    samples = np.frombuffer(recording, np.int16)[int(begin * RATE) : int(end * RATE)]
    loud = np.flatnonzero(np.abs(samples) > 700)
    return loud[-1] / RATE if loud.size else 0.0


# With a voice


async def test_a_spoken_topic_is_debated_and_heard(
    server: ScriptedLLMServer, album: Path, tell: Callable[[str], None]
):
    write_script(server, tempo=0)
    # Chromium's own microphone plays the file from when the page first asks for a microphone; the
    # greeting comes in the silence.
    topic = await speech("Please debate whether cats may vote.")
    write_wav(album / "topic.wav", silence(seconds=15) + topic + silence(seconds=1))
    async with (
        new_bot(server, SPEAKING_BOT) as bot,
        visit(bot, microphone=album / "topic.wav") as debate,
    ):
        await debate.click("talk")
        await debate.is_connection("on")
        await debate.reads("bot", GREETING)
        await debate.sees_level()
        await debate.reads("user", "cats may vote")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.is_floor_free()
        await debate.falls_silent()
        recording = await debate.visitor.recording()
        said = set(words(await debate.captions("bot")))

        for name in DEBATERS:
            claim = of_debater(server, name).sent_text.split(",")[0]
            assert claim in await debate.pane(name).locator(".words").inner_text()
    write_wav(album / "heard.wav", recording)
    heard = set(words(load_recognizer()(recording)))
    share = len(said & heard) / len(said)
    tell(f"Of the words that the bot said, {share:.0%} were recognized in the sound of the page.")
    # A busy machine drops some of the sound.
    assert share > 0.6
    assert {"critic", "analyst", "wait"} <= heard


async def test_talking_over_the_debate_stops_the_sound_and_every_debater(
    server: ScriptedLLMServer, album: Path, tell: Callable[[str], None]
):
    # The moderator speaks for half a minute, and the debaters never end.
    long = 8 * "Let us hear three sides of that, and take our time with every one of them. "
    server.on(
        lambda request: "debate" in request.tools and "dogs" in request.last_user_text.lower(),
        ToolCalls(ToolCall("debate", {"topic": "May dogs vote?"}), text=long),
        repeat=False,
    )
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    write_script(server, tempo=0)
    topic = await speech("Please debate whether dogs may vote.")
    # Without a pause, in which the bot would respond.
    interruption = await speech(
        "Please debate whether cats may vote at the next election in the city of London."
    )
    async with new_bot(server, SPEAKING_BOT) as bot, visit(bot) as debate:
        await debate.click("talk")
        await debate.reads("bot", GREETING)
        await debate.is_floor_free()
        await debate.visitor.say(topic)
        await debate.are_debaters("speaking")
        await debate.is_heard()

        began = await debate.visitor.say(interruption)
        await debate.are_debaters("cut")
        await wait_hung_up(server)
        await debate.page.wait_for_selector('#captions [data-side="bot"][data-cut]')
        await debate.page.wait_for_selector("#interrupted", state="visible")

        await debate.reads("user", "election")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        recording = await debate.visitor.recording()
    write_wav(album / "interrupted.wav", recording)
    silent_after = last_sound(recording, began, began + duration(interruption))
    tell(f"The page fell silent {silent_after:.2f} s after the user began to speak.")
    # It takes a second; the moderator would have gone on for half a minute.
    assert silent_after < 2.5


# Typed text


async def test_a_typed_topic_fills_the_captions_and_the_panes(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("Please debate whether cats may vote.")
        await debate.reads("user", "Please debate whether cats may vote.")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")

        for name in DEBATERS:
            words = await debate.pane(name).locator(".words").inner_text()
            assert words == of_debater(server, name).sent_text
            assert (
                float(
                    re.sub(r"[^\d.]", "", await debate.pane(name).locator(".seconds").inner_text())
                )
                >= 0
            )


async def test_typing_during_a_debate_cuts_every_debater(server: ScriptedLLMServer):
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    # With pauses, in which the panes stay cut before the next debate begins.
    write_script(server)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.type("May cats vote?")
        await debate.are_debaters("cut")
        await debate.page.wait_for_selector("#interrupted", state="visible")
        await wait_hung_up(server)
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        said = await debate.captions("bot")
        assert said.count(GREETING) == 1
        assert said.count("Let us hear three sides of that.") == 2


async def test_a_refused_microphone_is_explained_and_typing_goes_on(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with (
        new_bot(server, SPEAKING_BOT) as bot,
        visit(bot, microphone=Microphone.REFUSED) as debate,
    ):
        await debate.page.wait_for_selector("#permission", state="hidden")
        await debate.click("talk")
        await debate.page.wait_for_selector("#permission", state="visible")
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May cats vote?")
        await debate.reads("bot", LAST_WORDS)


# The connection


async def test_the_page_connects_again_when_the_bot_is_back(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await bot.kill()
        await debate.is_connection("lost")

        await bot.start()
        await debate.is_connection("on")
        await debate.type("May cats vote?")
        await debate.reads("bot", LAST_WORDS)
        # Chromium itself writes each attempt to connect to the console.
        errors, debate.visitor.errors = debate.visitor.errors, []
        assert [error for error in errors if "ERR_CONNECTION_REFUSED" not in error] == []


async def test_stop_ends_the_conversation(server: ScriptedLLMServer):
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.click("stop")
        await debate.is_connection("off")
        await wait_hung_up(server)


async def test_nothing_leaves_the_machine(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.page.add_init_script(
            """window.servers = [];
            window.RTCPeerConnection = class extends RTCPeerConnection {
                constructor(settings) {
                    super(settings);
                    servers.push(...this.getConfiguration().iceServers);
                }
            };"""
        )
        await debate.page.reload()
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        assert await debate.page.evaluate("servers") == []


# Everyone


async def test_the_keyboard_alone_holds_a_debate(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.tab_to("connect-typed")
        await debate.page.keyboard.press("Enter")
        await debate.reads("bot", GREETING)
        await debate.tab_to("say")
        await debate.page.keyboard.type("May cats vote?")
        await debate.page.keyboard.press("Enter")
        await debate.reads("bot", LAST_WORDS)
        await debate.tab_to("stop")
        await debate.page.keyboard.press("Enter")
        await debate.is_connection("off")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
async def test_the_page_is_accessible(server: ScriptedLLMServer, color_scheme: str, album: Path):
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot, color_scheme=color_scheme) as debate:
        await debate.page.screenshot(path=album / f"{color_scheme}-off.png")
        assert await debate.visitor.find_barriers() == ""
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.page.screenshot(path=album / f"{color_scheme}-speaking.png")
        assert await debate.visitor.find_barriers() == ""
        await debate.page.keyboard.press("Escape")
        await debate.are_debaters("cut")
        await debate.page.screenshot(path=album / f"{color_scheme}-cut.png")
        assert await debate.visitor.find_barriers() == ""
        await debate.type("May cats vote?")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.page.screenshot(path=album / f"{color_scheme}-done.png")
        assert await debate.visitor.find_barriers() == ""


async def test_the_last_line_is_seen_on_a_phone(server: ScriptedLLMServer, album: Path):
    write_script(server, tempo=0)
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    async with new_bot(server) as bot, visit(bot, **phone) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May cats vote?")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.page.screenshot(path=album / "phone.png")
        await debate.sees_last_line()
        # The phone's keyboard takes the lower part.
        await debate.page.set_viewport_size({"width": 390, "height": 480})
        await debate.page.screenshot(path=album / "phone-keyboard.png")
        await debate.sees_last_line()
