"""``python -m examples.receptionist``: a guest talks with the receptionist."""

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Pipecat logs as it is imported, so the level is set before.
os.environ.setdefault("LOGURU_LEVEL", "ERROR")

from pipecat.workers.runner import WorkerRunner

from examples.receptionist.bot import Bookings, Branch, Kitchen, Receptionist
from examples.receptionist.script import GUEST, find_llm


async def print_words(aggregator: Any, message: Any) -> None:
    """Print what the receptionist says."""
    if message.content:
        print(f"receptionist: {message.content}")


async def main(folder: str) -> None:
    """Play the conversation."""
    async with find_llm() as llm:
        bot = Receptionist("receptionist", llm=llm, active=True)
        bot.assistant_aggregator.add_event_handler("on_assistant_turn_stopped", print_words)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(
            bot,
            Bookings(Path(folder, "bookings.db")),
            Branch("north", {"north 1": 2, "north 2": 4}),
            Branch("harbour", {"harbour 1": 2, "harbour 2": 6}, takes=0.2),
            Branch("castle", {"castle 1": 12}, takes=9),
            Kitchen("kitchen"),
        )
        running = asyncio.create_task(runner.run())
        try:
            for text in GUEST:
                print(f"guest: {text}")
                await bot.hear(text, timeout=60)
        finally:
            await runner.cancel()
            await running


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(folder))
