"""The page of the voice bot in headless Chromium, with speech that is synthesized and recognized.

``make test-browser`` installs what these tests need, and runs them alone.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.bot_process import BOT, BotProcess
from support.browser import (
    Microphone,
    Visitor,
    needs_browser,
    open_page,
    recognize,
    speak,
    write_wav,
)
from support.sound import RATE, duration

from examples.debate.script import write_script
from examples.debate.workers import DEBATERS
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Stall, ToolCall, ToolCalls

if TYPE_CHECKING:
    from playwright.async_api import Locator

pytestmark = [pytest.mark.slow, needs_browser]

TYPED = BOT
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
async def visit(bot: BotProcess, **settings: Any) -> AsyncIterator["DebatePage"]:
    """Open the page of a bot, and see in the end that all went well in the browser."""
    async with open_page(f"http://{bot.host}/", **settings) as visitor:
        debate = DebatePage(visitor)
        yield debate
        assert visitor.errors == []
        assert {urlsplit(url).netloc for url in visitor.requests} == {bot.host}


class DebatePage:
    """What a user sees and does on the page."""

    def __init__(self, visitor: Visitor):
        self.visitor = visitor
        self.page = visitor.page

    async def click(self, name: str) -> None:
        await self.page.click(f"#{name}")

    async def is_connection(self, state: str) -> None:
        """Wait until the page shows a state of its connection."""
        await self.page.wait_for_selector(f'body[data-connection="{state}"]')

    async def type(self, text: str) -> None:
        await self.page.fill("#say", text)
        await self.page.press("#say", "Enter")

    async def reads(self, side: str, text: str) -> None:
        """Wait until the captions of a side contain a text."""
        await self.page.wait_for_function(
            """([side, text]) => {
                const captions = document.querySelectorAll(`#captions [data-side="${side}"]`);
                const words = [...captions].map((caption) => caption.innerText).join(" ");
                return words.replace(/\\s+/g, " ").toLowerCase().includes(text.toLowerCase());
            }""",
            arg=[side, text],
        )

    async def are_debaters(self, state: str) -> None:
        """Wait until the panes of all debaters show a state."""
        for name in DEBATERS:
            await self.page.wait_for_selector(f'[data-debater="{name}"][data-state="{state}"]')

    def pane(self, name: str) -> "Locator":
        return self.page.locator(f'[data-debater="{name}"]')

    async def falls_silent(self) -> None:
        """Wait until the page has played no sound for two seconds, after some."""
        await self.page.wait_for_function(
            "() => testSound.silence() > 2 && testSound.silence() < Infinity"
        )

    async def is_heard(self) -> None:
        """Wait until the page plays a sound."""
        await self.page.wait_for_function("() => testSound.silence() < 0.1")

    async def tab_to(self, name: str) -> None:
        """Move the focus to an element with the Tab key, and see that the focus shows."""
        for _ in range(40):
            await self.page.keyboard.press("Tab")
            if await self.page.evaluate("document.activeElement.id") == name:
                break
        assert await self.page.evaluate(
            """name => {
                const focus = document.activeElement, style = getComputedStyle(focus);
                return focus.id === name && focus.matches(":focus-visible")
                    && (style.outlineStyle !== "none" || style.boxShadow !== "none");
            }""",
            name,
        )

    async def sees_last_line(self) -> None:
        """Wait until the end of the captions is on the screen, above the field to type in."""
        await self.page.wait_for_function(
            """() => {
                const last = [...document.querySelectorAll("#captions [data-side]")].at(-1);
                const field = document.querySelector("#say").getBoundingClientRect();
                const { top, bottom } = last.getBoundingClientRect();
                const wide = document.documentElement.scrollWidth > innerWidth;
                return 0 < bottom && bottom <= field.top && field.bottom <= innerHeight && !wide;
            }"""
        )


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line for the person who runs the tests, without ``-s``."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return tell


@pytest.fixture
def pictures(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Path:
    """A folder for pictures of the page, so that one can look at them."""
    folder = tmp_path_factory.getbasetemp() / "pictures"
    folder.mkdir(exist_ok=True)
    tell(f"Pictures of the page: {folder}")
    return folder


def of_debater(server: ScriptedLLMServer, name: str) -> LLMRequest:
    """The latest request of a debater's LLM."""
    return next(
        request for request in reversed(server.requests) if DEBATERS[name] in request.system
    )


def silence(seconds: float) -> bytes:
    return bytes(2 * int(RATE * seconds))


def last_sound(recording: bytes, begin: float, end: float) -> float:
    """Find the last sound between two seconds of a recording, in seconds after the first."""
    samples = np.frombuffer(recording, np.int16)[int(begin * RATE) : int(end * RATE)]
    loud = np.flatnonzero(np.abs(samples) > 700)
    return loud[-1] / RATE if loud.size else 0.0


# With a voice


async def test_a_spoken_topic_is_debated_and_heard(server: ScriptedLLMServer, tmp_path: Path):
    write_script(server, tempo=0)
    # Chromium's own microphone plays the file from when the page first asks for a microphone; the
    # greeting comes in the silence.
    topic = await speak("Please debate whether cats may vote.")
    write_wav(tmp_path / "topic.wav", silence(seconds=15) + topic + silence(seconds=1))
    async with (
        new_bot(server) as bot,
        visit(bot, microphone=tmp_path / "topic.wav") as debate,
    ):
        await debate.click("talk")
        await debate.is_connection("on")
        await debate.reads("bot", GREETING)
        await debate.reads("user", "cats may vote")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.falls_silent()
        heard = await recognize(await debate.visitor.recording())

        for name in DEBATERS:
            claim = of_debater(server, name).sent_text.split(",")[0]
            assert claim in await debate.pane(name).locator(".words").inner_text()
    for words in ("which topic shall we debate", "advocate", "critic", "analyst", "the rest is"):
        assert words in heard.lower()


async def test_talking_over_the_debate_stops_the_sound_and_every_debater(
    server: ScriptedLLMServer, tell: Callable[[str], None]
):
    # The moderator speaks for twenty seconds, and the debaters never end.
    server.on(
        lambda request: "debate" in request.tools and "dogs" in request.last_user_text.lower(),
        ToolCalls(
            ToolCall("debate", {"topic": "May dogs vote?"}),
            text=5 * "Let us hear three sides of that, and take our time with every one of them. ",
        ),
        repeat=False,
    )
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    write_script(server, tempo=0)
    topic = await speak("Please debate whether dogs may vote.")
    interruption = await speak("Please debate whether cats may vote.")
    async with new_bot(server) as bot, visit(bot) as debate:
        await debate.click("talk")
        await debate.reads("bot", GREETING)
        await debate.falls_silent()
        await debate.visitor.say(topic)
        await debate.are_debaters("speaking")
        await debate.is_heard()

        began = await debate.visitor.say(interruption)
        await debate.are_debaters("cut")
        for name in DEBATERS:
            async with asyncio.timeout(100):
                await of_debater(server, name).wait_hung_up()
        await debate.page.wait_for_selector('#captions [data-side="bot"][data-cut]')
        await debate.page.wait_for_selector("#interrupted", state="visible")

        await debate.reads("user", "cats may vote")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        recording = await debate.visitor.recording()
    stopped = last_sound(recording, began, began + duration(interruption))
    tell(f"The sound stopped {stopped:.2f} s after the user began to speak.")
    assert stopped < 1.5


# Typed text


async def test_a_typed_topic_fills_the_captions_and_the_panes(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
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
    write_script(server, tempo=0)
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.type("May cats vote?")
        await debate.are_debaters("cut")
        await debate.page.wait_for_selector("#interrupted", state="visible")
        for name in DEBATERS:
            async with asyncio.timeout(100):
                await of_debater(server, name).wait_hung_up()
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        assert "dogs know" not in await debate.page.inner_text("main")


async def test_a_refused_microphone_is_explained_and_typing_goes_on(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server) as bot, visit(bot, microphone=Microphone.REFUSED) as debate:
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
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
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
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.click("stop")
        await debate.is_connection("off")
        for name in DEBATERS:
            async with asyncio.timeout(100):
                await of_debater(server, name).wait_hung_up()


async def test_nothing_leaves_the_machine(server: ScriptedLLMServer):
    write_script(server, tempo=0)
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
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
    async with new_bot(server, TYPED) as bot, visit(bot) as debate:
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
async def test_the_page_is_accessible(server: ScriptedLLMServer, color_scheme: str, pictures: Path):
    server.on("Topic: May dogs vote?", Stall("I hold that dogs know who is good."))
    write_script(server, tempo=0)
    async with new_bot(server, TYPED) as bot, visit(bot, color_scheme=color_scheme) as debate:
        await debate.page.screenshot(path=pictures / f"{color_scheme}-off.png")
        assert await debate.visitor.find_barriers() == ""
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May dogs vote?")
        await debate.are_debaters("speaking")
        await debate.page.screenshot(path=pictures / f"{color_scheme}-speaking.png")
        assert await debate.visitor.find_barriers() == ""
        await debate.type("May cats vote?")
        await debate.are_debaters("cut")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.page.screenshot(path=pictures / f"{color_scheme}-done.png")
        assert await debate.visitor.find_barriers() == ""


async def test_the_last_line_is_seen_on_a_phone(server: ScriptedLLMServer, pictures: Path):
    write_script(server, tempo=0)
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    async with new_bot(server, TYPED) as bot, visit(bot, **phone) as debate:
        await debate.click("connect-typed")
        await debate.reads("bot", GREETING)
        await debate.type("May cats vote?")
        await debate.reads("bot", LAST_WORDS)
        await debate.are_debaters("done")
        await debate.page.screenshot(path=pictures / "phone.png")
        await debate.sees_last_line()
        # The phone's keyboard takes the lower part.
        await debate.page.set_viewport_size({"width": 390, "height": 480})
        await debate.page.screenshot(path=pictures / "phone-keyboard.png")
        await debate.sees_last_line()
