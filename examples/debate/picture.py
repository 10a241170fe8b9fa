"""Takes the picture for the README: ``python -m examples.debate.picture``."""

import asyncio
import io
from pathlib import Path

from loguru import logger
from rich.console import Console
from rich.terminal_theme import MONOKAI

from examples.debate.screen import Screen
from examples.debate.script import FIRST_TOPIC
from examples.debate.stage import debate, find_provider

_PICTURE = Path(__file__).parents[2] / "docs" / "debate.svg"


async def take_picture(*, tempo: float = 1.0) -> str:
    """Run a debate and draw it during the moderator's summary; return the SVG.

    ``tempo`` multiplies the pauses of the scripted LLM.
    """
    console = Console(record=True, file=io.StringIO(), width=110, height=36, force_terminal=True)
    async with find_provider(tempo=tempo) as provider, debate(provider) as (moderator, board):
        await moderator.interrupt_with(FIRST_TOPIC)
        await board.until(lambda: board.moderator.tokens > 60)
        console.print(Screen(board, provider.notice))
    return console.export_svg(title="make demo", theme=MONOKAI)


if __name__ == "__main__":
    logger.remove()
    _PICTURE.write_text(asyncio.run(take_picture()), encoding="utf-8")
