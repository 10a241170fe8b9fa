"""``python -m examples.distributed``: the debate in four processes; Ctrl-K kills one."""

import argparse
import asyncio
import sys

from loguru import logger

_KILL = "\x0b"


async def at_terminal(topic: str, lease: float) -> int:
    """Debate at the terminal until the user quits; return the exit code."""
    from examples.debate.board import Board
    from examples.debate.screen import Screen
    from examples.debate.terminal import STARTING, load, shown, talk

    board = Board()
    screen = Screen(board, STARTING, keys="Ctrl-K: kill a process")
    async with shown(screen, board) as display:
        await load("examples.distributed.stage")
        from examples.debate.stage import check_choice, find_provider
        from examples.distributed.stage import distributed

        check_choice()
        async with find_provider() as provider, distributed(provider, lease, board) as stage:
            screen.notice, screen.status = provider.notice, stage.describe

            def kill() -> None:
                screen.notice = stage.kill()

            return await talk(topic, stage.moderator, display, {_KILL: kill})


async def plain(topic: str, kills: int, lease: float) -> int:
    """Print one debate, and kill processes during it; return the exit code."""
    from examples.debate.board import Board
    from examples.debate.stage import check_choice, find_provider
    from examples.distributed.stage import distributed

    check_choice()
    board = Board()
    async with find_provider(tempo=0.5) as provider, distributed(provider, lease, board) as stage:
        print(f"{provider.notice}.\n\nTopic: {topic}", flush=True)
        await stage.moderator.interrupt_with(topic)
        for _ in range(kills):
            await board.until(lambda: board.moderator.ended or stage.victim() is not None)
            print(f"{stage.kill()}: {stage.describe()}", flush=True)
        await board.until(lambda: board.moderator.ended)
        for speaker in board.speakers:
            print(f"\n{speaker.name.upper()} ({speaker.state}, {speaker.seconds:.1f} s)")
            print(speaker.text or speaker.problem, flush=True)
        print(f"\n{stage.describe()}", flush=True)
    return 0


def main() -> int:
    """Read the command line and run the demo; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.distributed",
        description="A moderator and three debaters in four processes; Ctrl-K kills one.",
    )
    parser.add_argument("--topic", default="Should AI be regulated?", help="the first topic")
    parser.add_argument("--plain", action="store_true", help="print one debate and exit")
    parser.add_argument("--kills", type=int, default=1, help="how many to kill, with --plain")
    parser.add_argument(
        "--lease",
        type=float,
        default=1.5,
        help="seconds after which a silent process counts as dead; more on a busy machine",
    )
    arguments = parser.parse_args()
    logger.remove()
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.plain
    try:
        if interactive:
            return asyncio.run(at_terminal(arguments.topic, arguments.lease))
        return asyncio.run(plain(arguments.topic, arguments.kills, arguments.lease))
    except KeyboardInterrupt:
        return 0 if interactive else 130
    except asyncio.CancelledError:
        return 143


sys.exit(main())
