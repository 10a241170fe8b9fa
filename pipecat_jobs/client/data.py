"""Data of jobs as JSON that a client can get."""

import json

from pipecat_jobs._llm.context_value import to_context_value

#: The largest JSON text of data that is sent, in bytes. A WebRTC data channel carries 65,536 in one
#: message, of which the envelope needs some.
MOST_BYTES = 60_000


def to_client_value(data: object) -> object:
    """Convert data to JSON; data that is too large becomes a note of its size."""
    written = to_context_value(data)
    size = find_size(written)
    return written if size <= MOST_BYTES else {"left_out": f"{size:,} bytes"}


def find_size(written: object) -> int:
    """Return the bytes of a value as JSON, as transports write it."""
    return len(json.dumps(written).encode())


def to_milliseconds(time: float) -> int:
    """Convert seconds since the epoch to whole milliseconds, as Pipecat's envelopes have them."""
    return int(time * 1000)
