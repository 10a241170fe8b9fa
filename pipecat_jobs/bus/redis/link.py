"""A connection to the server that reconnects after an error."""

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

from pipecat_jobs.bus._distributed.engine import UnreachableError
from pipecat_jobs.bus.redis.refusals import explain, find_code

#: One command: its name and its arguments.
Command: TypeAlias = tuple[bytes | str | int, ...]
#: The reply of the server to a command. An error reply is returned, not raised.
Reply: TypeAlias = "bytes | int | list[Reply] | ResponseError | None"

# Its type stub takes one argument; the function takes any number.
_pack = cast(Callable[[Command], bytes], pack_command)


class RefusedError(UnreachableError):
    """The server is reachable, and refuses the command."""


class Link:
    """Sends commands over a connection of its own, several in one batch."""

    def __init__(self, client: Redis, *, timeout: float):
        #: Only the settings of its connections are used.
        self._client = client
        #: Seconds that connecting and one batch may take.
        self._timeout = timeout
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()

    async def call(self, *commands: Command, wait: float = 0) -> list[Reply]:
        """Send commands in order and return one reply for each, waiting ``wait`` seconds longer.

        Raises :class:`UnreachableError` if the connection breaks or the server has become a
        replica. The server may have done the commands before that.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout + wait):
                    connection = await self._connect()
                    # The connection's own packing is pure Python.
                    packed = b"".join(map(_pack, commands))
                    await connection.send_packed_command(packed)
                    replies = [await self._read(connection) for _ in commands]
                    _check_primary(replies)
                    return replies
            except BaseException as error:
                # Replies that are still unread would be read as those of the next commands.
                await self.drop()
                if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
                    raise UnreachableError(_explain_failure(error)) from error
                raise

    async def demand(self, *commands: Command) -> list[Reply]:
        """Send commands, and raise :class:`RefusedError` if one of the replies is an error."""
        replies = await self.call(*commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise RefusedError(explain(reply)) from reply
        return replies

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closing TLS waits for the other side, which may be out of reach.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await connection.disconnect()

    async def drop(self) -> None:
        """Close the connection at once. The next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _connect(self) -> AbstractConnection:
        connection = self._connection
        if connection is None:
            pool = self._client.connection_pool
            # Not a connection of the user's pool, which a blocking read would occupy. It returns
            # bytes even if the user's client decodes replies, and does not retry by itself.
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
    # After a fail-over, the old primary keeps its connections; reconnecting reaches the new one.
    for reply in replies:
        if isinstance(reply, ResponseError) and find_code(reply) == "READONLY":
            raise RedisConnectionError(str(reply)) from reply


def _explain_failure(error: Exception) -> str:
    said, cause = explain(error), error.__context__
    # Older releases of redis-py pass on only the number of a TLS error.
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in said:
        said += f" ({cause.strerror})"
    return said
