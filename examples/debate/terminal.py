"""The debate at a terminal: draws the board, and takes the user's next topic meanwhile."""

import asyncio
import signal
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live

from examples.debate.board import Board
from examples.debate.keyboard import END_OF_INPUT, Keyboard
from examples.debate.screen import Screen
from examples.debate.stage import debate, find_provider
from examples.debate.workers import Moderator

_FRAME = 0.05
_QUIET_FRAME = 0.5  # A window that was resized is drawn again within this time.


async def converse(topic: str) -> int:
    """Debate at the terminal until the user quits; return the exit code."""
    end_with_sigterm()
    async with find_provider() as provider, debate(provider) as (moderator, board):
        return await talk(topic, moderator, board, Screen(board, provider.notice), {})


def end_with_sigterm() -> None:
    """Have SIGTERM cancel the running task, so that the terminal is restored."""
    this_task = asyncio.current_task()
    assert this_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)


async def talk(
    topic: str,
    moderator: Moderator,
    board: Board,
    screen: Screen,
    keys: Mapping[str, Callable[[], None]],
) -> int:
    """Show the debate and take the user's topics until the user quits.

    Args:
        topic: The first topic.
        moderator: The worker that gets the user's text.
        board: The state of the debate.
        screen: The drawing of the board.
        keys: Functions of further keys.

    Returns:
        The exit code.
    """
    with (
        Live(screen, console=Console(), screen=True, auto_refresh=False) as live,
        Keyboard() as keyboard,
    ):
        await moderator.interrupt_with(topic)
        while True:
            live.refresh()
            match await keyboard.read(timeout=_QUIET_FRAME if board.quiet else _FRAME):
                case None:
                    pass
                case key if key == END_OF_INPUT:
                    return 0
                case key if key in keys:
                    keys[key]()
                case "\r" | "\n":
                    said, screen.typed = screen.typed.strip(), ""
                    if said == "q":
                        return 0
                    if said:
                        await moderator.interrupt_with(said)
                case "\x7f" | "\b":
                    screen.typed = screen.typed[:-1]
                case "\x15":  # Ctrl-U
                    screen.typed = ""
                case key if key.isprintable():
                    screen.typed += key
                    await moderator.interrupt()
