"""Imports that are slow and would otherwise happen during the first job."""

import contextlib

from openai import AsyncOpenAI
from pipecat.utils.string import match_endofsentence


def load_ahead() -> None:
    """Import the modules of the LLM client's first call, and of Pipecat's first sentence.

    Each takes a second or more on a busy machine. The event loop is blocked meanwhile, so the
    process could count as dead.
    """
    _ = AsyncOpenAI(api_key="none").chat.completions
    # The splitter raises if its data cannot be downloaded, but is imported then.
    with contextlib.suppress(LookupError):
        match_endofsentence("Ready.")
