"""Checks of the arguments of public functions; an error names the option, the value and a cure."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError

_Kind = TypeVar("_Kind")

#: About 31 years: longer than any timer needs, and in milliseconds still exact in JSON and Lua.
MOST_SECONDS = 1e9
#: The largest whole number that JSON and Lua carry exactly.
MOST_COUNT = 2**53


def check_flag(name: str, value: object) -> bool:
    """Refuse a value that is neither True nor False."""
    if isinstance(value, bool):
        return value
    raise InvalidJobTypeError(f"{name} is {shorten(value)}; give True or False")


def check_text(name: str, value: object, wanted: str, *, most: int | None = None) -> str:
    """Refuse a value that is not a string, is empty, or has more characters than ``most``."""
    if not isinstance(value, str):
        raise InvalidJobTypeError(f"{name} is {shorten(value)}; give {wanted}")
    if not value:
        raise InvalidJobError(f"{name} is empty; give {wanted}")
    if most is not None and len(value) > most:
        raise InvalidJobError(
            f"{name} has {len(value):,} characters, more than {most:,}; give {wanted}"
        )
    # Not a member of an enum, which is formatted as its name.
    return str.__str__(value)


def check_encodable(name: str, value: object, wanted: str) -> str:
    """Refuse a value that :func:`check_text` refuses, or that cannot be written as UTF-8."""
    text = check_text(name, value, wanted)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidJobError(
            f"{name} is {shorten(text)}, which has half of a surrogate pair; give {wanted}"
        ) from error
    return text


def check_count(
    name: str,
    value: object,
    wanted: str = "a whole number",
    *,
    least: int = 1,
    most: int = MOST_COUNT,
) -> int:
    """Refuse a value that is not a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJobTypeError(f"{name} is {shorten(value)}; give {wanted}")
    if not least <= value <= most:
        raise InvalidJobError(
            f"{name} is {shorten(value)}; give {wanted}, from {least} to {most:,}"
        )
    return value


def check_port(name: str, value: object, *, least: int = 1) -> int:
    """Refuse a value that is not the number of a TCP port, from ``least`` up."""
    return check_count(name, value, "the number of a port", least=least, most=65_535)


def check_seconds(name: str, value: object) -> float:
    """Refuse a value that is not a number of seconds above zero, or is too long for a timer."""
    seconds = check_number(name, value, "seconds as a number")
    if 0 < seconds <= MOST_SECONDS:
        return seconds
    raise InvalidJobError(
        f"{name} is {shorten(value)}; give more than zero seconds, at most {MOST_SECONDS:,.0f}"
    )


def check_delay(name: str, value: object) -> float:
    """Refuse a value that is not a number of seconds from zero up, or is too long for a timer."""
    seconds = check_number(name, value, "seconds as a number")
    if 0 <= seconds <= MOST_SECONDS:
        return seconds
    raise InvalidJobError(
        f"{name} is {shorten(value)}; give zero or more seconds, at most {MOST_SECONDS:,.0f}"
    )


def check_number(name: str, value: object, wanted: str) -> float:
    """Refuse a value that is not a number, or is an int that is too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidJobTypeError(f"{name} is {shorten(value)}; give {wanted}")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidJobError(
            f"{name} is {shorten(value)}, too large for a number; give {wanted}"
        ) from error


def check_probability(name: str, value: object) -> float:
    """Refuse a value that is not a number from 0 to 1."""
    wanted = "a probability from 0 to 1"
    probability = check_number(name, value, wanted)
    if 0 <= probability <= 1:
        return probability
    raise InvalidJobError(f"{name} is {shorten(value)}; give {wanted}")


def check_choice(name: str, value: object, known: Sequence[str]) -> str:
    """Refuse a value that is not one of the known strings."""
    if isinstance(value, str) and value in known:
        return value
    listed = ", ".join(repr(choice) for choice in known)
    raise InvalidJobError(f"{name} is {shorten(value)}; give one of {listed}")


def check_callable(name: str, value: object, wanted: str) -> Callable[..., Any]:
    """Refuse a value that cannot be called."""
    if callable(value):
        return value
    raise InvalidJobTypeError(f"{name} is {shorten(value)}; give {wanted}")


def check_instance(
    name: str, value: object, kind: type[_Kind] | tuple[type[_Kind], ...], wanted: str
) -> _Kind:
    """Refuse a value that is not an instance of a class, or of one of several classes."""
    if isinstance(value, kind):
        return value
    raise InvalidJobTypeError(f"{name} is {shorten(value)}; give {wanted}")
