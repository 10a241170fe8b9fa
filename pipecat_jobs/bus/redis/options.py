"""The options of the bus, checked where they are written."""

from redis.asyncio import Redis

from pipecat_jobs._protocol.checks import check_count, check_encodable, check_seconds
from pipecat_jobs.errors import InvalidJobTypeError


def check_server(url_or_client: object) -> None:
    """Check what says where the server is.

    Args:
        url_or_client: A URL, a client, or None for a server of the bus's own.

    Raises:
        InvalidJobTypeError: If it is something else, such as a client that is not asynchronous.
    """
    if not isinstance(url_or_client, str | Redis | None):
        given = type(url_or_client)
        raise InvalidJobTypeError(
            f"the server is a {given.__module__}.{given.__qualname__}; give a URL, a "
            "redis.asyncio.Redis, or None for a server of the bus's own"
        )


def check_channel(channel: object) -> None:
    """Check a channel's name.

    Args:
        channel: The name.

    Raises:
        InvalidJobTypeError: If it is not a text.
        InvalidJobError: If it is empty, or cannot be written as UTF-8.
    """
    check_encodable("channel", channel, "a name that all processes of the channel have")


def check_all_seconds(**values: object) -> None:
    """Check lengths of time.

    Args:
        **values: Seconds, by option.

    Raises:
        InvalidJobTypeError: If one is not a number.
        InvalidJobError: If one is not above zero, or is too long for a timer.
    """
    for name, value in values.items():
        check_seconds(name, value)


def check_counts(**values: object) -> None:
    """Check how many there may be of something.

    Args:
        **values: The most there may be, by option.

    Raises:
        InvalidJobTypeError: If one is not a whole number.
        InvalidJobError: If one is below one, or more than the server counts exactly.
    """
    for name, value in values.items():
        check_count(name, value)
