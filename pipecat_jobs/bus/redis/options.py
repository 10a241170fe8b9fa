"""The options of the bus, checked where they are written."""

import math

from redis.asyncio import Redis


def check_server(url_or_client: object) -> None:
    """Check what says where the server is.

    Args:
        url_or_client: A URL, a client, or None for a server of the bus's own.

    Raises:
        TypeError: If it is something else, such as a client that is not asynchronous.
    """
    if not isinstance(url_or_client, str | Redis | None):
        given = type(url_or_client)
        raise TypeError(
            f"the server is a {given.__module__}.{given.__qualname__}; give a URL, a "
            "redis.asyncio.Redis, or None for a server of the bus's own"
        )


def check_channel(channel: object) -> None:
    """Check a channel's name.

    Args:
        channel: The name.

    Raises:
        TypeError: If it is no text.
        ValueError: If it is empty.
    """
    if not isinstance(channel, str):
        raise TypeError(f"channel is {channel!r}; give a text")
    if not channel:
        raise ValueError("channel is empty; give a name, or leave it out")


def check_seconds(**values: object) -> None:
    """Check lengths of time.

    Args:
        **values: Seconds, by option.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not above zero.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}; give a number of seconds")
        _check_above_zero(name, value)


def check_counts(**values: object) -> None:
    """Check how many there may be of something.

    Args:
        **values: The most there may be, by option.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If one is not above zero.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}; give a whole number")
        _check_above_zero(name, value)


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; give a number above zero")
