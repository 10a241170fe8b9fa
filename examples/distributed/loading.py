"""What is otherwise loaded in the middle of the first answer."""

import contextlib

from openai import AsyncOpenAI
from pipecat.utils.string import match_endofsentence


def load_ahead() -> None:
    """Load what the LLM's client loads at its first call, and Pipecat for the first sentence.

    Either takes a second or more on a busy machine, in which a process on a channel would stand
    still, and might count as dead.
    """
    _ = AsyncOpenAI(api_key="none").chat.completions
    # The splitter misses its data where they cannot be had, and is loaded all the same.
    with contextlib.suppress(LookupError):
        match_endofsentence("Ready.")
