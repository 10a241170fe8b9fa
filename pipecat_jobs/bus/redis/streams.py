"""A bus between processes, on Redis Streams."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import cast

from pipecat.bus.adapters import TypeAdapter
from redis.asyncio import Redis

from pipecat_jobs._protocol.checks import (
    check_count,
    check_encodable,
    check_flag,
    check_seconds,
)
from pipecat_jobs.bus._distributed.bus import DistributedBus
from pipecat_jobs.bus._distributed.engine import Engine
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis.embedded import EmbeddedRedis
from pipecat_jobs.bus.redis.process import Process
from pipecat_jobs.bus.redis.script import Channel, Limits
from pipecat_jobs.bus.wire import WireCodec
from pipecat_jobs.errors import InvalidJobTypeError


class RedisStreamsBus(DistributedBus):
    """A bus for workers in several processes, on which every job ends even if a process dies.

    Every process has its own bus on the same channel of a Redis server (6.2 or newer, or Valkey).
    Handoff, bridged frames, the registry and proxies of Pipecat work across processes. A job goes
    to one process that hosts the worker and has a free slot. If that process dies, the job is
    reassigned to another process, or ends as lost.

    A job for a worker of the same process does not cross the server; other messages do.

    Args:
        url_or_client: The URL of the server (``redis://``, ``rediss://`` or ``unix://``), or a
            ``redis.asyncio.Redis``, of which the bus uses only the settings. None starts a private
            server, which ends with this process: see :class:`EmbeddedRedis`.
        channel: The name of the channel. Processes see only processes of the same channel.
        lease: Seconds after which a process that has not renewed its lease is considered dead, and
            its jobs are reassigned. A process that blocks its event loop for longer is evicted too.
        takeover: Seconds that a request waits for a process that may take it, before it is lost.
        max_attempts: After how many attempts in processes that died a job ends as lost.
        room: How many slots a worker has in this process for jobs without a ``max_concurrency``.
        secret: The key that signs every message (HMAC-SHA256), so that only a process that knows it
            can send one. All processes of a channel need the same secret. None signs nothing.
        types: Dataclasses, enums and pydantic models that messages may hold beyond Pipecat's own.
        adapters: Pipecat's adapters for other types, by type.
        max_message_bytes: The most bytes that one encoded message may have.
        outbox_limit: How many messages may wait in this process while the server is away.
        through_server: Whether messages for workers of this process cross the server as well.
        start_timeout: Seconds to try to reach the server when the bus starts.

    Raises:
        InvalidJobTypeError: If an option has the wrong type.
        InvalidJobError: If a number is not above zero or is too large, a name or the secret is
            empty, or two types have the same name.

    Example::

        from pipecat_jobs.bus.redis import RedisStreamsBus

        bus = RedisStreamsBus(channel="session-42")
        runner = WorkerRunner(bus=bus, handle_sigint=False)
        await runner.add_workers(BaseWorker("researcher"))
        running = asyncio.create_task(runner.run())
        await runner.end()
        await running
    """

    def __init__(
        self,
        url_or_client: str | Redis | None = None,
        *,
        channel: str = "pipecat",
        lease: float = 1.5,
        takeover: float = 3.0,
        max_attempts: int = 3,
        room: int = 64,
        secret: str | bytes | None = None,
        types: Iterable[type] = (),
        adapters: Mapping[type, TypeAdapter] | None = None,
        max_message_bytes: int = 1_000_000,
        outbox_limit: int = 10_000,
        through_server: bool = False,
        start_timeout: float = 10.0,
    ):
        if not isinstance(cast(object, url_or_client), str | Redis | None):
            given = type(url_or_client)
            raise InvalidJobTypeError(
                f"the server is a {given.__module__}.{given.__qualname__}; give a URL, a "
                "redis.asyncio.Redis, or None for a private server"
            )
        check_encodable("channel", channel, "a name that all processes of the channel have")
        check_seconds("lease", lease)
        check_seconds("takeover", takeover)
        check_seconds("start_timeout", start_timeout)
        check_flag("through_server", through_server)
        check_count("max_attempts", max_attempts)
        check_count("room", room)
        check_count("max_message_bytes", max_message_bytes)
        check_count("outbox_limit", outbox_limit)
        super().__init__(
            _make_usual_codec(max_message_bytes)
            if types == () and adapters is None
            else WireCodec(types, adapters=adapters, max_bytes=max_message_bytes),
            Envelopes(channel, secret=secret),
            lease=lease,
            takeover=takeover,
            room=room,
            outbox_limit=outbox_limit,
            through_server=through_server,
            start_timeout=start_timeout,
        )
        self._server = EmbeddedRedis() if url_or_client is None else None
        self._client = Redis.from_url(url_or_client) if isinstance(url_or_client, str) else None
        if isinstance(url_or_client, Redis):
            self._client = url_or_client
        self._url = url_or_client if isinstance(url_or_client, str) else None
        self._channel = Channel(channel, Limits(lease, takeover, max_attempts))

    @property
    def url(self) -> str:
        """The URL of the server, to give to the buses of other processes.

        Raises:
            RuntimeError: If the bus was given a client, or its private server has not started.
        """
        if self._server is not None:
            return self._server.url
        if self._url is None:
            raise RuntimeError("the bus was given a client; take the URL from there")
        return self._url

    async def _open_engine(self) -> Engine:
        if self._server is not None:
            await self._server.start()
            self._client = Redis.from_url(self._server.url)
        assert self._client is not None
        return Process(
            self._client,
            self._channel,
            self._outbox,
            self,
            lease=self._lease,
            timeout=max(2 * self._lease, 2.0),
            stats=self._stats,
        )

    async def _close_server(self) -> None:
        if self._server is not None:
            await self._server.stop()


@cache
def _make_usual_codec(max_bytes: int) -> WireCodec:
    """Make the codec that all buses of a process share whose user adds no types to it."""
    return WireCodec(max_bytes=max_bytes)
