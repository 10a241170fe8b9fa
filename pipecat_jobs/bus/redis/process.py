"""The engine on Redis: the lease of this process, what it sends and what it reads."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import cast

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.bus._distributed.engine import (
    BusStats,
    Call,
    EngineListener,
    Entry,
    UnreachableError,
)
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus.redis.inbox import Inbox
from pipecat_jobs.bus.redis.link import Command, Link, RefusedError, Reply
from pipecat_jobs.bus.redis.refusals import explain, find_code, is_of_cluster
from pipecat_jobs.bus.redis.script import LOAD, Channel
from pipecat_jobs.errors import BusUnavailableError, RedisModeError

#: The most calls that are sent at once.
_BATCH = 64
#: The most bytes that are sent at once, unless one message has more.
_MOST_BYTES = 250_000
#: The lowest speed of the network to the server that is supported, in bytes per second.
_SLOWEST = 250_000
#: How often a lease is renewed within its length, so that one renewal may be late.
_RENEWALS = 4
#: Seconds between two audits.
_AUDIT_EVERY = 5.0
_LONGEST_BACKOFF = 1.0
#: Seconds between two log lines about the same error of the server.
_LOG_REFUSAL_EVERY = 60.0


def _make_id() -> str:
    return uuid.uuid4().hex[:16]


class _Delays:
    """Growing delays with jitter, so that processes do not retry in step."""

    def __init__(self) -> None:
        self._next = 0.05

    def __next__(self) -> float:
        delay, self._next = self._next, min(self._next * 2, _LONGEST_BACKOFF)
        return delay * random.uniform(0.5, 1.0)


class _RefusalLog:
    """Logs an error of the server once, and not again at each retry."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def log(self, listener: EngineListener, error: ResponseError) -> None:
        now, kind = asyncio.get_running_loop().time(), find_code(error) or ""
        if now >= self._quiet_until.get(kind, 0):
            self._quiet_until[kind] = now + _LOG_REFUSAL_EVERY
            logger.error(f"{listener}: the server refuses calls: {explain(error)}")


class Process:
    """Keeps this process on its channel, also while the server is away.

    ``lease`` is in seconds, and ``timeout`` is how many seconds a reply of the server may take.
    """

    def __init__(
        self,
        client: Redis,
        channel: Channel,
        outbox: Outbox,
        listener: EngineListener,
        *,
        lease: float,
        timeout: float,
        stats: BusStats,
    ):
        self._channel = channel
        self._outbox = outbox
        self._listener = listener
        self._lease = lease
        self._stats = stats
        self._sending, self._reading = (Link(client, timeout=timeout) for _ in range(2))
        # Half a lease leaves time to renew the lease over another connection.
        self._renewing = Link(client, timeout=lease / 2)
        #: Identifies this process as long as it lives; ``id`` changes with each eviction.
        self.uid = _make_id()
        self.id = ""
        self._joins_as = _make_id()
        self._number = 0
        #: Why calls do not reach the server, or None.
        self._cannot_send: str | None = None
        #: Why the lease is not renewed, or None.
        self._cannot_renew: str | None = None
        #: The time since which the server has refused reads of this process, or None.
        self._refused_at: float | None = None
        self._refusal_log = _RefusalLog()
        self._joining = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def trouble(self) -> str | None:
        """A sentence that says why nothing reaches the server, or None."""
        cause = self._cannot_send or self._cannot_renew
        return f"the Redis server is away: {cause}" if cause is not None else None

    async def start(self, timeout: float) -> None:
        """Join the channel, or raise if the server cannot be reached for ``timeout`` seconds."""
        delays = _Delays()
        self._cannot_send = cause = "it does not answer"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        await self._check_mode()
                        await self._join()
                        break
                    except UnreachableError as error:
                        if is_of_cluster(error.__cause__):
                            raise RedisModeError("cluster") from error
                        self._cannot_send = cause = str(error)
                        await asyncio.sleep(next(delays))
        except BaseException as error:
            await self._close()
            if isinstance(error, TimeoutError):
                raise BusUnavailableError(cause, seconds=timeout) from error
            raise
        self._cannot_send = None
        self._tasks = [
            self._listener.create_task(self._run_for_ever(self._send), "redis_send"),
            self._listener.create_task(self._run_for_ever(self._renew), "redis_lease"),
        ]

    async def stop(self, timeout: float) -> None:
        """Send the calls that wait, for at most ``timeout`` seconds, and leave the channel."""
        try:
            async with asyncio.timeout(timeout):
                await self._outbox.wait_until_empty()
        except TimeoutError:
            logger.warning(f"{self._listener}: {len(self._outbox)} messages were never sent")
        for task in self._tasks:
            await self._listener.cancel_task(task)
        # If the bus is started again, its next process sends them first, with its own numbers.
        for call in self._outbox.list_tried():
            call.number = 0
        # Cancelled last, because until the other tasks have ended, one of them may start a new
        # reader.
        if self._reader is not None:
            await self._listener.cancel_task(self._reader)
        self._tasks, self._reader = [], None
        try:
            await self._call_once(self._sending, "leave")
        except UnreachableError as error:
            logger.warning(f"{self._listener}: did not leave, the server is away: {error}")
        await self._close()

    async def fetch_roster(self) -> set[str]:
        """Return the names of the runners on the channel."""
        names = await self._call_once(self._renewing, "roster")
        return {name.decode("utf-8", "surrogatepass") for name in cast(list[bytes], names)}

    async def _call_once(self, link: Link, name: str) -> Reply:
        # The server may have lost the scripts, so they are loaded first. If this process has not
        # joined yet, the server may already know it by the id under which it is joining.
        *_, reply = await link.demand(*LOAD, self._channel.call(name, self._joins_as, 0))
        return reply

    async def _close(self) -> None:
        for link in (self._sending, self._renewing, self._reading):
            await link.close()

    async def _run_for_ever(self, loop: Callable[[], Awaitable[None]]) -> None:
        delays = _Delays()
        while True:
            # A process that is on the channel and does not read would keep its requesters waiting,
            # so no error ends the loop.
            try:
                await loop()
            except Exception as error:
                logger.opt(exception=error).error(
                    f"{self._listener}: continuing after: {shorten(error)}"
                )
                await asyncio.sleep(next(delays))

    # -- membership --------------------------------------------------------------------------

    async def _check_mode(self) -> None:
        # Not INFO, for which the user of the bus would need a further right.
        [reply] = await self._sending.call(("HELLO",))
        if isinstance(reply, list):
            properties = dict(zip(reply[::2], reply[1::2], strict=False))
            mode = properties.get(b"mode", b"standalone")
            if mode != b"standalone":
                raise RedisModeError(cast(bytes, mode).decode())

    async def _join(self) -> None:
        # A retry uses the same id, because the server may have done the first try. With another id,
        # this process would be on the channel twice, and one of the two would be considered dead.
        name = self._joins_as
        await self._sending.demand(
            *LOAD, self._channel.call("join", name, 0, self.uid, self._listener.name_runners())
        )
        inbox = Inbox(self._channel.name_inbox(name), self._reading)
        # Checked before the offers are made: a process that offers its workers and cannot read
        # would keep their requesters waiting.
        await inbox.check()
        await self._sending.demand(
            *(
                self._channel.call("host", name, 0, offer.name, offer.to_json(self.uid))
                for offer in self._listener.list_offers()
            )
        )
        # Publish the new id only once joining succeeded: a renewal under it before that would be
        # answered 'fenced'.
        self.id = name
        self._reader = self._listener.create_task(
            self._run_for_ever(lambda: self._read(inbox)), "redis_read"
        )

    async def _rejoin(self, evicted: str) -> None:
        async with self._joining:
            if self.id != evicted:
                return
            logger.warning(
                f"{self._listener}: this process was evicted: it did not renew its lease of "
                f"{self._lease:g} s, or the server has lost its state, or another program has "
                "changed it; its jobs are stopped, and it joins again"
            )
            self._stats.expulsions += 1
            if self._reader is not None:
                await self._listener.cancel_task(self._reader)
            self._refused_at = None
            self._listener.on_evicted()
            self._outbox.remove_sent(
                [call for call in self._outbox.list_tried() if not call.outlives]
            )
            for call in self._outbox.list_tried():
                call.number = 0
            self._joins_as, delays = _make_id(), _Delays()
            while True:
                try:
                    await self._join()
                    break
                except UnreachableError as error:
                    await self._wait_out(delays, error)
            self._listener.on_rejoined()

    async def _renew(self) -> None:
        renewal, loop = self._lease / _RENEWALS, asyncio.get_running_loop()
        audit_at = loop.time() + _AUDIT_EVERY
        while True:
            await asyncio.sleep(renewal)
            process, leaves = self.id, self._cannot_read()
            try:
                # A process that renews its lease but cannot read its inbox would keep its
                # requesters waiting, so it leaves.
                command = self._channel.call("leave" if leaves else "renew", process, 0)
                [reply] = await self._renewing.call(command)
            except UnreachableError as error:
                # Not logged: `_send` logs that the server is away, and that it is back.
                self._cannot_renew = str(error)
                continue
            self._cannot_renew = None
            if reply == b"fenced" or (leaves and reply == b"ok"):
                await self._rejoin(process)
            elif isinstance(reply, NoScriptError):
                await self._load(self._renewing)
            elif isinstance(reply, ResponseError):
                self._refusal_log.log(self._listener, reply)
            if loop.time() >= audit_at:
                audit_at = loop.time() + _AUDIT_EVERY
                self._listener.audit()

    def _cannot_read(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._refused_at is not None and now - self._refused_at > self._lease

    # -- sending -----------------------------------------------------------------------------

    async def _send(self) -> None:
        delays = _Delays()
        while True:
            calls = await self._outbox.take(_BATCH)
            process, first_new = self.id, self._number + 1
            commands, size = self._make_commands(calls)
            del calls[len(commands) :]
            try:
                replies = await self._sending.call(*commands, wait=size / _SLOWEST)
            except UnreachableError as error:
                await self._wait_out(delays, error)
                continue
            if self._cannot_send is not None:
                self._on_reconnected()
                # The reading connection may hang after the error that broke this one.
                await self._reading.drop()
            problem = self._remove_sent(calls, replies, first_new)
            if problem is None:
                delays = _Delays()
            elif isinstance(problem, bytes):
                # This process was evicted, or another program has changed its last number.
                await self._rejoin(process)
            elif isinstance(problem, NoScriptError):
                await self._load(self._sending)
            else:
                self._refusal_log.log(self._listener, problem)
                await asyncio.sleep(next(delays))

    def _make_commands(self, calls: list[Call]) -> tuple[list[Command], int]:
        """Make the commands of the calls that fit into one batch, and count their bytes."""
        # The server must not do a call if it could not do the call before it.
        after, size, commands = 0, 0, list[Command]()
        for call in calls:
            if not call.number:
                self._number += 1
                call.number = self._number
            arguments = call.arguments(self.id, call.number)
            commands.append(
                self._channel.call(call.name, self.id, call.number, *arguments, after=after)
            )
            after = call.number
            size += sum(len(each) for each in arguments if not isinstance(each, int))
            if size >= _MOST_BYTES:
                break
        return commands, size

    def _remove_sent(
        self, calls: list[Call], replies: list[Reply], first_new: int
    ) -> bytes | ResponseError | None:
        """Remove the calls that the server took, and return the first reply of a refused one."""
        done: list[Call] = []
        problem: bytes | ResponseError | None = None
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                problem = reply
                break
            status = cast(bytes, reply)
            if status in (b"fenced", b"early") or (status == b"again" and call.number >= first_new):
                problem = status
                break
            done.append(call)
        self._stats.sent += len(done)
        self._outbox.remove_sent(done)
        for call, reply in zip(done, replies, strict=False):
            call.replied(cast(bytes, reply).decode())
        return problem

    async def _load(self, link: Link) -> None:
        try:
            await link.call(*LOAD)
        except UnreachableError:
            logger.debug(f"{self._listener}: the server went away while the scripts were loaded")

    async def _wait_out(self, delays: _Delays, error: UnreachableError) -> None:
        if self._cannot_send is None:
            logger.warning(f"{self._listener}: the server is away, messages wait: {error}")
        self._cannot_send = str(error)
        await asyncio.sleep(next(delays))

    def _on_reconnected(self) -> None:
        self._cannot_send = None
        self._stats.reconnects += 1
        logger.info(f"{self._listener}: the server is back")
        self._listener.audit()

    # -- reading -----------------------------------------------------------------------------

    async def _read(self, inbox: Inbox) -> None:
        delays = _Delays()
        while True:
            try:
                await inbox.read(self._take)
            except RefusedError as error:
                if self._refused_at is None:
                    self._refused_at = asyncio.get_running_loop().time()
                    logger.error(f"{self._listener}: the server refuses reads: {error}")
                await asyncio.sleep(next(delays))
            except UnreachableError as error:
                logger.debug(f"{self._listener}: reading again after an error: {error}")
                await asyncio.sleep(next(delays))
            else:
                delays, self._refused_at = _Delays(), None

    def _take(self, entry: Entry) -> None:
        self._stats.received += 1
        # The next entries must be read even if this one raises.
        try:
            self._listener.read(entry)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # The sys.exit() of a library must not end the task that reads.
            level = "CRITICAL" if isinstance(error, SystemExit) else "ERROR"
            logger.opt(exception=error).log(
                level, f"{self._listener}: raised at {shorten(entry)}; continuing"
            )
