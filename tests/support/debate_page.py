"""The page of the debate, as a user sees and uses it."""

from typing import TYPE_CHECKING

from examples.debate.workers import DEBATERS
from support.browser import Visitor

if TYPE_CHECKING:
    from playwright.async_api import Locator


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

    async def is_floor_free(self) -> None:
        """Wait until nobody speaks and nobody is expected to."""
        await self.page.wait_for_selector('body[data-floor=""]')

    async def captions(self, side: str) -> str:
        """All that the captions of a side say."""
        return " ".join(
            await self.page.locator(f'#captions [data-side="{side}"]').all_inner_texts()
        )

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

    async def sees_level(self) -> None:
        """Wait until the meter shows that the microphone picks something up."""
        await self.page.wait_for_function(
            "() => Number(document.querySelector('#level').getAttribute('aria-valuenow')) > 0"
        )

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
                const box = (part) => part.getBoundingClientRect();
                const captions = box(document.querySelector("#captions"));
                const field = box(document.querySelector("#say"));
                const wide = document.documentElement.scrollWidth > innerWidth;
                return box(last).bottom <= captions.bottom + 1 && captions.bottom <= field.top
                    && field.bottom <= innerHeight && !wide;
            }"""
        )
