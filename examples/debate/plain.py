"""One debate without a terminal: prints the text of each speaker when it has finished."""

import sys
from textwrap import fill

from examples.debate.board import UNDEBATED, Speaker, State
from examples.debate.stage import check_choice, debate, find_provider

_WIDTH = 88


async def play(topic: str) -> int:
    """Print one debate; return the exit code, which is 1 if a speaker failed."""
    check_choice()
    # The words do not appear one by one, so the scripted LLM need not pause between them.
    async with find_provider(tempo=0.1) as provider, debate(provider) as (moderator, board):
        print(f"{provider.notice}.\n\nTopic: {topic}", flush=True)
        await moderator.interrupt_with(topic)
        printed: set[str] = set()

        def finished() -> list[Speaker]:
            return [s for s in board.speakers if s.ended and s.name not in printed]

        while moderator.name not in printed:
            await board.until(lambda: bool(finished()))
            for speaker in finished():
                printed.add(speaker.name)
                _print(speaker)
        if board.undebated:
            print(f"\n{fill(UNDEBATED, _WIDTH)}", flush=True)
        return int(any(speaker.state is State.FAILED for speaker in board.speakers))


def _print(speaker: Speaker) -> None:
    print(f"\n{speaker.name.upper()} ({speaker.state}, {speaker.seconds:.1f} s)", flush=True)
    for paragraph in speaker.text.splitlines():
        print(fill(paragraph, _WIDTH), flush=True)
    if speaker.state is State.FAILED:
        print(f"The {speaker.name} failed: {speaker.problem}", file=sys.stderr, flush=True)
