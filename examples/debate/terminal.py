"""The debate at a terminal: draws the board, and takes the user's next topic meanwhile.

Importing Pipecat takes seconds on a slow machine, so it is imported when the first frame has been
drawn.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from examples.debate.board import Board
from examples.debate.keyboard import DOWN, END_OF_INPUT, PAGE_DOWN, PAGE_UP, UP, Keyboard
from examples.debate.screen import Screen

if TYPE_CHECKING:
    from examples.debate.workers import Moderator

STARTING = "starting…"
_FRAME = 0.05
_QUIET_FRAME = 0.5  # A window that was resized is drawn again within this time.
_PAGE = 5


async def converse(topic: str) -> int:
    """Debate at the terminal until the user quits; return the exit code."""
    board = Board()
    screen = Screen(board, STARTING)
    async with shown(screen, board) as display:
        await load("examples.debate.stage")
        from examples.debate.stage import check_choice, debate, find_provider

        check_choice()
        async with find_provider() as provider, debate(provider, board) as (moderator, _):
            screen.notice = provider.notice
            return await talk(topic, moderator, display, {})


async def load(module: str) -> None:
    """Import a module that is slow to import, while the screen is drawn and keys are read."""
    loaded = Future[None]()
    loaded.set_running_or_notify_cancel()

    def run() -> None:
        try:
            import_module(module)
        except BaseException as error:
            loaded.set_exception(error)
        else:
            loaded.set_result(None)

    # A user who quits meanwhile does not wait for a daemon.
    Thread(target=run, daemon=True).start()
    await asyncio.wrap_future(loaded)


class Display:
    """The screen as it is drawn, and the keyboard."""

    def __init__(self, screen: Screen, live: Live, keyboard: Keyboard):
        self.screen = screen
        self.keyboard = keyboard
        self._live = live

    def draw(self) -> None:
        """Draw the screen."""
        self._live.refresh()

    async def keep_drawing(self, board: Board) -> None:
        """Draw the screen whenever it may have changed."""
        while True:
            self.draw()
            if board.quiet:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_QUIET_FRAME):
                        await board.until(lambda: not board.quiet)
            else:
                await asyncio.sleep(_FRAME)


@asynccontextmanager
async def shown(screen: Screen, board: Board) -> AsyncGenerator[Display, None]:
    """Draw the screen on the whole terminal while the block runs; SIGTERM ends the block."""
    this_task = asyncio.current_task()
    assert this_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
    with (
        Keyboard() as keyboard,
        Live(screen, console=Console(), screen=True, auto_refresh=False) as live,
    ):
        display = Display(screen, live, keyboard)
        drawing = asyncio.create_task(display.keep_drawing(board))
        try:
            yield display
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})
            if not drawing.cancelled():
                drawing.result()


async def talk(
    topic: str,
    moderator: Moderator,
    display: Display,
    keys: Mapping[str, Callable[[], None]],
) -> int:
    """Take the user's topics until the user quits.

    Args:
        topic: The first topic.
        moderator: The worker that gets the user's text.
        display: The screen and the keyboard.
        keys: Functions of further keys.

    Returns:
        The exit code.
    """
    screen = display.screen
    await moderator.interrupt_with(topic)
    while True:
        display.draw()
        match await display.keyboard.read():
            case key if key == END_OF_INPUT:
                return 0
            case key if key in keys:
                keys[key]()
            case key if key in _SCROLLS:
                screen.scroll(_SCROLLS[key])
            case "\r" | "\n":
                said, screen.typed = screen.typed.strip(), ""
                if said == "q":
                    return 0
                if said:
                    screen.scroll_to_end()
                    await moderator.interrupt_with(said)
            case "\x7f" | "\b":
                screen.typed = screen.typed[:-1]
            case "\x15":  # Ctrl-U
                screen.typed = ""
            case key if key.isprintable():
                screen.typed += key
                await moderator.interrupt()
            case _:
                pass


#: Lines by which a key scrolls back.
_SCROLLS = {UP: 1, DOWN: -1, PAGE_UP: _PAGE, PAGE_DOWN: -_PAGE}
