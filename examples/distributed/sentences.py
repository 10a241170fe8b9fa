"""What finds the ends of sentences, loaded ahead of time."""

import contextlib

from pipecat.utils.string import match_endofsentence


def load_splitter() -> None:
    """Have Pipecat load what it otherwise loads in the middle of the first sentence.

    That takes a second or more, in which a process on a channel would stand still, and might count
    as dead.
    """
    # It misses its data where they cannot be had, and is loaded all the same.
    with contextlib.suppress(LookupError):
        match_endofsentence("Ready.")
