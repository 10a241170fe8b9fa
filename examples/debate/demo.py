"""The demo's command line."""

import argparse
import asyncio
import signal
import sys

from loguru import logger


def main() -> int:
    """Read the command line and run the demo; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.debate",
        description="A moderator and three debaters, live in your terminal.",
        epilog="OPENAI_API_KEY has a real model debate; OPENAI_MODEL and OPENAI_BASE_URL say "
        "which one, and where. Without a key, DEBATE_LLM=local has a small model on this machine "
        "debate, and otherwise a scripted one does.",
    )
    parser.add_argument("--topic", default="Should AI be regulated?", help="the first topic")
    parser.add_argument("--plain", action="store_true", help="print one debate and exit")
    parser.add_argument("--log", metavar="FILE", help="write Pipecat's log to a file")
    arguments = parser.parse_args()

    logger.remove()
    if arguments.log:
        logger.add(arguments.log, level="DEBUG")
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and sys.platform != "win32"
    try:
        # Pipecat logs as it is imported, so it is imported once logging is set up.
        if interactive and not arguments.plain:
            # This one draws the screen before it imports Pipecat.
            from examples.debate.terminal import converse

            return asyncio.run(converse(arguments.topic))
        from examples.debate.plain import play

        return asyncio.run(play(arguments.topic))
    except KeyboardInterrupt:
        return 0 if interactive else 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
