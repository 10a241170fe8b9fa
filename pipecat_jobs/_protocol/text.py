"""Values of others as text for errors and logs: short, and never raising."""

from reprlib import Repr

from pipecat.bus.messages import BusMessage

#: The most characters of a foreign value in an error or a log line.
MOST_TEXT = 200

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MOST_TEXT
# Items of items of items: more levels of more items would take long where all are full.
_repr.maxlevel = 3


def shorten(value: object) -> str:
    """Represent any value, in little more than :data:`MOST_TEXT` characters."""
    try:
        return cut(_repr.repr(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be written as text>"


def describe(message: BusMessage) -> str:
    """Represent a message from elsewhere, in little more than :data:`MOST_TEXT` characters."""
    try:
        return cut(str(message))
    except Exception:
        return f"<{type(message).__name__} that cannot be written as text>"


def cut(text: str) -> str:
    """Cut a text to :data:`MOST_TEXT` characters."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."
