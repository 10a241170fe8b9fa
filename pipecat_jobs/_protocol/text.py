"""Short texts of foreign values, for errors and logs; no value makes these functions raise."""

from reprlib import Repr

from pipecat.bus.messages import BusMessage

#: The largest number of characters of a foreign value in an error or a log line.
MOST_TEXT = 200


class TravelsAsText(str):
    """A text with attributes of its own, of which a bus between processes carries the text."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MOST_TEXT
# A value with many items on each of many levels would take long to write.
_repr.maxlevel = 3


def shorten(value: object) -> str:
    """Write any value as text of about :data:`MOST_TEXT` characters."""
    try:
        return cut(_repr.repr(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be written as text>"


def describe(message: BusMessage) -> str:
    """Write a message as text of about :data:`MOST_TEXT` characters."""
    try:
        return cut(str(message))
    except Exception:
        return f"<{type(message).__name__} that cannot be written as text>"


def cut(text: str) -> str:
    """Cut a text after :data:`MOST_TEXT` characters."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."
