"""Turns values of any type into JSON for an LLM's context."""

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic_core import to_jsonable_python

#: Levels of nesting that are written as JSON. Deeper values are written as text, because JSON
#: encoders, this one and those of the providers' clients, recurse.
_MOST_LEVELS = 100
#: Larger integers are written as text: ``json`` refuses those of more than 4300 digits.
_MOST_BITS = 1024


def to_context_value(value: object) -> Any:
    """Convert a value to JSON that can be sent to any provider.

    The result has dicts with ``str`` keys, lists, ``str``, ``int``, finite ``float``, ``bool`` and
    None. Half of a surrogate pair, which cannot be encoded, becomes U+FFFD. What JSON cannot
    express (bytes, NaN, a value that contains itself, unknown types) is written as text.
    """
    return _write(value, ())


def to_encodable(text: str) -> str:
    """Replace each half of a surrogate pair, which UTF-8 cannot encode, with U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins the two halves of a pair that were separate characters.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _write(value: object, within: tuple[int, ...]) -> Any:
    match value:
        case None | bool():
            return value
        case int():
            return int(value) if value.bit_length() <= _MOST_BITS else hex(value)
        case float():
            return float(value) if math.isfinite(value) else str(float(value))
        case str():
            return to_encodable(str.__str__(value))
        case bytes() | bytearray() | memoryview():
            return bytes(value).decode("utf-8", "backslashreplace")
        case _:
            pass
    if id(value) in within or len(within) >= _MOST_LEVELS:
        return _to_text(value)
    within = (*within, id(value))
    try:
        parts = _take_apart(value)
    except Exception:  # Code of the bot's own types runs here and may raise anything.
        return _to_text(value)
    match parts:
        case dict():
            items = cast("dict[object, object]", parts).items()
            return {_write_key(key): _write(part, within) for key, part in items}
        case list():
            return [_write(part, within) for part in cast("list[object]", parts)]
        case _:
            return _write(parts, within)


def _take_apart(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    if isinstance(value, list | tuple | set | frozenset):
        return list(cast("list[object]", value))
    # Models, dataclasses, dates, enums and so on; text for unknown types.
    return to_jsonable_python(value, serialize_unknown=True)


def _write_key(key: object) -> str:
    written = _write(key, ())
    return written if isinstance(written, str) else _to_text(written)


def _to_text(value: object) -> str:
    try:
        return to_encodable(str(value))
    except Exception:  # For example a recursion that is too deep for str().
        return f"<{type(value).__name__}>"
