"""Checks of the options of the bus."""

from redis.asyncio import Redis

from pipecat_jobs._protocol.checks import check_count, check_encodable, check_seconds
from pipecat_jobs.errors import InvalidJobTypeError


def check_server(url_or_client: object) -> None:
    """Raise :class:`InvalidJobTypeError` unless it is a URL, an asynchronous client or None."""
    if not isinstance(url_or_client, str | Redis | None):
        given = type(url_or_client)
        raise InvalidJobTypeError(
            f"the server is a {given.__module__}.{given.__qualname__}; give a URL, a "
            "redis.asyncio.Redis, or None for a server of the bus's own"
        )


def check_channel(channel: object) -> None:
    """Raise unless a channel's name is a string that is not empty and can be encoded."""
    check_encodable("channel", channel, "a name that all processes of the channel have")


def check_all_seconds(**values: object) -> None:
    """Raise unless each option is a number of seconds above zero that fits a timer."""
    for name, value in values.items():
        check_seconds(name, value)


def check_counts(**values: object) -> None:
    """Raise unless each option is a whole number from one to what the server counts exactly."""
    for name, value in values.items():
        check_count(name, value)
