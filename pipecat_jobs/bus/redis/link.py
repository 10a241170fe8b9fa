"""One connection to the server, which comes back after it has broken."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from pipecat_jobs.bus.redis.refusals import code_of, explain

#: One command: its name and its arguments.
Command: TypeAlias = tuple[bytes | str | int, ...]
#: What the server says to a command; an error it answers with is given, not raised.
Reply: TypeAlias = "bytes | int | list[Reply] | ResponseError | None"

# What hiredis says of it takes one argument; it takes any number.
_pack = cast(Callable[[Command], bytes], pack_command)


class UnreachableError(ConnectionError):
    """The server cannot be reached, or does not answer."""


class RefusedError(UnreachableError):
    """The server answers, and does not let it be done."""


class Link:
    """Sends commands over a connection of its own, several at once.

    Args:
        client: Says where the server is and how to speak to it.
        timeout: How long connecting, and an answer, may each take, in seconds.
    """

    def __init__(self, client: Redis, *, timeout: float):
        self._client = client
        self._timeout = timeout
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()

    async def call(self, *commands: Command, wait: float = 0) -> list[Reply]:
        """Send commands and collect what the server says to each.

        Args:
            *commands: The commands, in order.
            wait: How much longer than usual the answer may take, in seconds.

        Returns:
            One reply for each.

        Raises:
            UnreachableError: If the connection breaks first, or is one to a server that takes no
                writes any more. What came of the commands is unknown.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout + wait):
                    connection = await self._connected()
                    # The connection's own packing is pure Python.
                    packed = b"".join(map(_pack, commands))
                    await connection.send_packed_command(packed)
                    replies = [await self._read(connection) for _ in commands]
                    _check_primary(replies)
                    return replies
            except BaseException as error:
                # Replies that nobody read would be taken for those of the next commands.
                await self.drop()
                if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
                    raise UnreachableError(_reason(error)) from error
                raise

    async def demand(self, *commands: Command) -> list[Reply]:
        """Send commands of which the server has to take every one.

        Args:
            *commands: The commands, in order.

        Returns:
            One reply for each.

        Raises:
            UnreachableError: If the connection breaks first.
            RefusedError: If the server answers one of them with an error.
        """
        replies = await self.call(*commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise RefusedError(explain(reply)) from reply
        return replies

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Over TLS the other side says goodbye as well, unless it is out of reach.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await connection.disconnect()

    async def drop(self) -> None:
        """Close the connection at once. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _connected(self) -> AbstractConnection:
        connection = self._connection
        if connection is None:
            pool = self._client.connection_pool
            # Ours alone, so that a blocking read keeps none of the caller's pool; read raw,
            # whatever the caller's client decodes to; and whoever calls is who tries again.
            settings: dict[str, Any] = {
                **pool.connection_kwargs,
                "protocol": 2,
                "decode_responses": False,
                "socket_timeout": None,
                "retry": Retry(NoBackoff(), 0),
                "health_check_interval": 0,
            }
            connection = self._connection = pool.connection_class(**settings)
        if not connection.is_connected:
            try:
                await connection.connect()
                if self._connection is not connection:
                    raise RedisConnectionError("closed while it was opened")
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        return connection

    @staticmethod
    async def _read(connection: AbstractConnection) -> Reply:
        try:
            return cast(Reply, await connection.read_response())
        except ResponseError as error:
            return error


def _check_primary(replies: list[Reply]) -> None:
    # After a fail-over the old server keeps its connections; a new one reaches the new primary.
    for reply in replies:
        if isinstance(reply, ResponseError) and code_of(reply) == "READONLY":
            raise RedisConnectionError(str(reply)) from reply


def _reason(error: Exception) -> str:
    said, cause = explain(error), error.__context__
    # Of what went wrong with TLS, older releases of redis-py pass on a number alone.
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in said:
        said += f" ({cause.strerror})"
    return said
