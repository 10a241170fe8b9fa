"""This process on a channel: its lease, what it sends and what it reads."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Protocol, cast

from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.bus._distributed.offers import Offer
from pipecat_jobs.bus._distributed.stats import BusStats
from pipecat_jobs.bus.redis.inbox import Entry, Inbox
from pipecat_jobs.bus.redis.link import Command, Link, RefusedError, Reply, UnreachableError
from pipecat_jobs.bus.redis.outbox import Call, Outbox
from pipecat_jobs.bus.redis.refusals import code_of, explain, is_of_cluster
from pipecat_jobs.bus.redis.script import LOAD, Channel
from pipecat_jobs.errors import BusUnavailableError, RedisModeError

#: Calls sent in one go.
_BATCH = 64
#: Bytes that are sent in one go, unless a single message has more.
_MOST_BYTES = 250_000
#: Bytes a second that a way to the server has to carry.
_SLOWEST = 250_000
#: Renewals of a lease within its length, so that one may be late.
_RENEWALS = 4
#: Seconds between looks at whether the server has forgotten something.
_AUDIT_EVERY = 5.0
_LONGEST_BACKOFF = 1.0
#: Seconds between two log lines about the same refusal.
_COMPLAIN_EVERY = 60.0


class Occupant(Protocol):
    """Whoever uses the process to reach the channel."""

    def offers(self) -> Iterable[Offer]:
        """List what the process has to offer to others."""
        ...

    def runner_name(self) -> str:
        """Name the runner, by which others know this process's workers."""
        ...

    def read(self, entry: Entry) -> None:
        """Take a message."""
        ...

    def expelled(self) -> None:
        """Hear that the process was declared dead: what it held is no longer its own."""
        ...

    def rejoined(self) -> None:
        """Hear that it is back on the channel."""
        ...

    def audit(self) -> None:
        """Compare its books with the server's."""
        ...

    def create_task(self, coroutine: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task."""
        ...

    async def cancel_task(self, task: asyncio.Task[None]) -> None:
        """Cancel a task and wait for it."""
        ...


def _new_id() -> str:
    return uuid.uuid4().hex[:16]


class _Delays:
    """Growing pauses, no two processes in step."""

    def __init__(self) -> None:
        self._next = 0.05

    def __next__(self) -> float:
        delay, self._next = self._next, min(self._next * 2, _LONGEST_BACKOFF)
        return delay * random.uniform(0.5, 1.0)


class _Complaints:
    """Logs what the server refuses, but not each time that it is tried again."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def log(self, who: Occupant, error: ResponseError) -> None:
        now, kind = asyncio.get_running_loop().time(), code_of(error) or ""
        if now >= self._quiet_until.get(kind, 0):
            self._quiet_until[kind] = now + _COMPLAIN_EVERY
            logger.error(f"{who}: the server refuses what this process sends: {explain(error)}")


class Process:
    """Keeps a process on its channel, whatever becomes of the server meanwhile.

    Args:
        client: Says where the server is.
        channel: The channel.
        outbox: What is to be sent.
        occupant: Who gets what is read.
        lease: Seconds that the process may give no sign of life.
        timeout: Seconds that the server may take for an answer.
        stats: Where to count.
    """

    def __init__(
        self,
        client: Redis,
        channel: Channel,
        outbox: Outbox,
        occupant: Occupant,
        *,
        lease: float,
        timeout: float,
        stats: BusStats,
    ):
        self._channel = channel
        self._outbox = outbox
        self._occupant = occupant
        self._lease = lease
        self._stats = stats
        self._sending, self._reading = (Link(client, timeout=timeout) for _ in range(2))
        # Soon enough to try again over another connection before the lease is over.
        self._renewing = Link(client, timeout=lease / 2)
        #: Tells this process from all others for as long as it lives, declared dead or not.
        self.uid = _new_id()
        self.id = ""
        self._joins_as = _new_id()
        self._number = 0
        #: Why what is sent does not reach the server.
        self._cannot_send: str | None = None
        #: Why the lease is not renewed.
        self._cannot_renew: str | None = None
        #: Since when the server has refused to let this process read.
        self._refused_at: float | None = None
        self._complaints = _Complaints()
        self._joining = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def trouble(self) -> str | None:
        """Why the server is out of reach, or None."""
        return self._cannot_send or self._cannot_renew

    async def start(self, timeout: float) -> None:
        """Join the channel.

        Args:
            timeout: Seconds to try for.

        Raises:
            BusUnavailableError: If the server could not be reached.
            RedisModeError: If it is a node of a cluster, or a Sentinel.
        """
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
            self._occupant.create_task(self._for_ever(self._send), "redis_send"),
            self._occupant.create_task(self._for_ever(self._renew), "redis_lease"),
        ]

    async def stop(self, timeout: float) -> None:
        """Send what waits to be sent and leave the channel.

        Args:
            timeout: Seconds that sending may take.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._outbox.empty()
        except TimeoutError:
            logger.warning(f"{self._occupant}: {len(self._outbox)} messages were never sent")
        for task in self._tasks:
            await self._occupant.cancel_task(task)
        # Should the bus be started again, they are the first that its next process sends.
        for call in self._outbox.tried():
            call.number = 0
        # Known only now: until they have ended, one of the others may join anew.
        if self._reader is not None:
            await self._occupant.cancel_task(self._reader)
        self._tasks, self._reader = [], None
        try:
            await self._call_once(self._sending, "leave")
        except UnreachableError as error:
            logger.warning(f"{self._occupant}: left without a word, the server is away: {error}")
        await self._close()

    async def roster(self) -> set[str]:
        """Ask for the runners of the processes on the channel.

        Returns:
            Their names.

        Raises:
            UnreachableError: If the server is away.
        """
        names = await self._call_once(self._renewing, "roster")
        return {name.decode("utf-8", "surrogatepass") for name in cast(list[bytes], names)}

    async def _call_once(self, link: Link, name: str) -> Reply:
        # With the scripts, since the server may have forgotten them; and by the name that it knows
        # this process by, or may know it by.
        *_, reply = await link.demand(*LOAD, self._channel.call(name, self._joins_as, 0))
        return reply

    async def _close(self) -> None:
        for link in (self._sending, self._renewing, self._reading):
            await link.close()

    async def _for_ever(self, loop: Callable[[], Awaitable[None]]) -> None:
        delays = _Delays()
        while True:
            # A process that is on the channel and does not read would keep others waiting.
            try:
                await loop()
            except Exception as error:
                logger.opt(exception=error).error(
                    f"{self._occupant}: going on after: {shorten(error)}"
                )
                await asyncio.sleep(next(delays))

    # -- belonging to the channel ------------------------------------------------------------

    async def _check_mode(self) -> None:
        # Redis 6.2 and newer answer it; INFO is more than the bus needs the right for.
        [reply] = await self._sending.call(("HELLO",))
        if isinstance(reply, list):
            properties = dict(zip(reply[::2], reply[1::2], strict=False))
            mode = properties.get(b"mode", b"standalone")
            if mode != b"standalone":
                raise RedisModeError(cast(bytes, mode).decode())

    async def _join(self) -> None:
        # When nobody said whether it was heard, it is tried again under the same name: under
        # another one, this process would be on the channel twice, and one of them would die.
        name = self._joins_as
        await self._sending.demand(
            *LOAD, self._channel.call("join", name, 0, self.uid, self._occupant.runner_name())
        )
        inbox = Inbox(self._channel.inbox(name), self._reading)
        # Who offers its workers and cannot read keeps whoever asks them waiting.
        await inbox.check()
        await self._sending.demand(
            *(
                self._channel.call("host", name, 0, offer.name, offer.as_text(self.uid))
                for offer in self._occupant.offers()
            )
        )
        # Not before: a lease that is renewed meanwhile would be taken for lost.
        self.id = name
        self._reader = self._occupant.create_task(
            self._for_ever(lambda: self._read(inbox)), "redis_read"
        )

    async def _rejoin(self, expelled: str) -> None:
        async with self._joining:
            if self.id != expelled:
                return
            logger.warning(
                f"{self._occupant}: this process gave no sign of life for {self._lease:g} s, or "
                "the server has lost its state, or another program has changed it; the jobs it "
                "had are given up, and it joins anew"
            )
            self._stats.expulsions += 1
            if self._reader is not None:
                await self._occupant.cancel_task(self._reader)
            self._refused_at = None
            self._occupant.expelled()
            self._outbox.sent([call for call in self._outbox.tried() if not call.outlives])
            for call in self._outbox.tried():
                call.number = 0
            self._joins_as, delays = _new_id(), _Delays()
            while True:
                try:
                    await self._join()
                    break
                except UnreachableError as error:
                    await self._pause(delays, error)
            self._occupant.rejoined()

    async def _renew(self) -> None:
        renewal, loop = self._lease / _RENEWALS, asyncio.get_running_loop()
        audit_at = loop.time() + _AUDIT_EVERY
        while True:
            await asyncio.sleep(renewal)
            process, deaf = self.id, self._is_deaf()
            try:
                # What lives and cannot hear keeps those waiting who ask it.
                command = self._channel.call("leave" if deaf else "renew", process, 0)
                [reply] = await self._renewing.call(command)
            except UnreachableError as error:
                # The sender logs it, and when it is over.
                self._cannot_renew = str(error)
                continue
            self._cannot_renew = None
            if reply == b"fenced" or (deaf and reply == b"ok"):
                await self._rejoin(process)
            elif isinstance(reply, NoScriptError):
                await self._load(self._renewing)
            elif isinstance(reply, ResponseError):
                self._complaints.log(self._occupant, reply)
            if loop.time() >= audit_at:
                audit_at = loop.time() + _AUDIT_EVERY
                self._occupant.audit()

    def _is_deaf(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._refused_at is not None and now - self._refused_at > self._lease

    # -- sending -----------------------------------------------------------------------------

    async def _send(self) -> None:
        delays = _Delays()
        while True:
            calls = await self._outbox.take(_BATCH)
            process, first_new = self.id, self._number + 1
            commands, size = self._commands(calls)
            del calls[len(commands) :]
            try:
                replies = await self._sending.call(*commands, wait=size / _SLOWEST)
            except UnreachableError as error:
                await self._pause(delays, error)
                continue
            if self._cannot_send is not None:
                self._is_back()
                # Its connection may hang where this one broke.
                await self._reading.drop()
            problem = self._note(calls, replies, first_new)
            if problem is None:
                delays = _Delays()
            elif isinstance(problem, bytes):
                # Fenced, or the number of its last call is not what this process has made it.
                await self._rejoin(process)
            elif isinstance(problem, NoScriptError):
                await self._load(self._sending)
            else:
                self._complaints.log(self._occupant, problem)
                await asyncio.sleep(next(delays))

    def _commands(self, calls: list[Call]) -> tuple[list[Command], int]:
        """Make the commands of the first calls, no more than go at once, and count their bytes."""
        # None is done where the one before it could not be.
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

    def _note(
        self, calls: list[Call], replies: list[Reply], first_new: int
    ) -> bytes | ResponseError | None:
        """Tick off what was taken. Gives the first reply that says that a call was not."""
        done: list[Call] = []
        problem: bytes | ResponseError | None = None
        for call, reply in zip(calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                problem = reply
                break
            said = cast(bytes, reply)
            if said in (b"fenced", b"early") or (said == b"again" and call.number >= first_new):
                problem = said
                break
            done.append(call)
        self._stats.sent += len(done)
        self._outbox.sent(done)
        for call, reply in zip(done, replies, strict=False):
            call.replied(cast(bytes, reply).decode())
        return problem

    async def _load(self, link: Link) -> None:
        try:
            await link.call(*LOAD)
        except UnreachableError:
            logger.debug(f"{self._occupant}: the server went away while the scripts were loaded")

    async def _pause(self, delays: _Delays, error: UnreachableError) -> None:
        if self._cannot_send is None:
            logger.warning(f"{self._occupant}: the server is away, messages wait: {error}")
        self._cannot_send = str(error)
        await asyncio.sleep(next(delays))

    def _is_back(self) -> None:
        self._cannot_send = None
        self._stats.reconnects += 1
        logger.info(f"{self._occupant}: the server is back")
        self._occupant.audit()

    # -- reading -----------------------------------------------------------------------------

    async def _read(self, inbox: Inbox) -> None:
        delays = _Delays()
        while True:
            try:
                await inbox.read(self._take)
            except RefusedError as error:
                if self._refused_at is None:
                    self._refused_at = asyncio.get_running_loop().time()
                    logger.error(f"{self._occupant}: the server lets nothing be read: {error}")
                await asyncio.sleep(next(delays))
            except UnreachableError as error:
                logger.debug(f"{self._occupant}: reading again after: {error}")
                await asyncio.sleep(next(delays))
            else:
                delays, self._refused_at = _Delays(), None

    def _take(self, entry: Entry) -> None:
        self._stats.received += 1
        # What cannot be taken must not keep the rest from being read.
        try:
            self._occupant.read(entry)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A library's sys.exit() must not take this process off the channel.
            level = "CRITICAL" if isinstance(error, SystemExit) else "ERROR"
            logger.opt(exception=error).log(
                level, f"{self._occupant}: raised at {shorten(entry)}; going on"
            )
