"""The messages that wait for this process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from redis.exceptions import ResponseError

from pipecat_jobs.bus.redis.link import Command, Link, RefusedError, Reply, UnreachableError
from pipecat_jobs.bus.redis.outbox import Lane
from pipecat_jobs.bus.redis.refusals import explain

#: Messages read in one go.
BATCH = 64
#: Seconds that a read waits for a message, before it looks whether the server is still there.
_READ_WAIT = 5.0
_LANES: tuple[Lane, ...] = (Lane.URGENT, Lane.DATA)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in this process's inbox.

    Parameters:
        lane: Which of its two streams it was in.
        kind: What it is, by the letter that the script gave it.
        ref: The server's name for the job it is about, or nothing.
        attempt: The attempt at that job.
        body: The rest.
        moved: Whether it is a request that goes to another process than those it belongs to.
    """

    lane: Lane
    kind: str
    ref: str
    attempt: int
    body: bytes
    moved: bool = False


class Inbox:
    """The two streams of a process, and how far they have been read.

    Args:
        streams: The urgent one and the other.
        link: The connection to read them by.
    """

    def __init__(self, streams: tuple[str, str], link: Link):
        self._link = link
        self._streams = dict(zip(_LANES, streams, strict=True))
        self._lanes = {stream.encode(): lane for lane, stream in self._streams.items()}
        self._last = dict.fromkeys(self._streams, b"0-0")
        self._read_lanes: set[Lane] = set()
        self._most = self._asked_for = BATCH

    async def check(self) -> None:
        """Find out whether the server lets this process read, and take off what it has read.

        Raises:
            UnreachableError: If the server is away.
            RefusedError: If it does not.
        """
        read: Command = ("XREAD", "COUNT", 1, "STREAMS", *self._streams.values(), "$", "$")
        await self._link.demand(*map(self._trim, _LANES), read)

    async def read(self, take: Callable[[Entry], None]) -> None:
        """Wait for messages, and hand them over: the urgent ones first, however many there are.

        Args:
            take: Called with each.

        Raises:
            UnreachableError: If the server is away.
            RefusedError: If it does not let them be read.
        """
        found = await self._fetch(tuple(self._streams), wait=_READ_WAIT)
        urgent = found.pop(Lane.URGENT, [])
        while urgent:
            self._hand_over(Lane.URGENT, urgent, take)
            full = len(urgent) == self._asked_for
            urgent = (await self._fetch((Lane.URGENT,))).get(Lane.URGENT, []) if full else []
        for lane, entries in found.items():
            self._hand_over(lane, entries, take)
        # What is answered at once goes before the next read: a turn to answer, one to send.
        for _ in range(2):
            await asyncio.sleep(0)

    def _hand_over(
        self, lane: Lane, entries: list[list[Reply]], take: Callable[[Entry], None]
    ) -> None:
        for identifier, fields in entries:
            self._last[lane] = cast(bytes, identifier)
            self._read_lanes.add(lane)
            take(_entry(lane, cast(list[bytes], fields)))

    async def _fetch(
        self, lanes: tuple[Lane, ...], wait: float = 0
    ) -> dict[Lane, list[list[Reply]]]:
        trims = [self._trim(lane) for lane in self._read_lanes]
        block: Command = ("BLOCK", round(wait * 1000)) if wait else ()
        read: Command = (
            *("XREAD", "COUNT", self._most, *block, "STREAMS"),
            *(self._streams[lane] for lane in lanes),
            *(self._last[lane] for lane in lanes),
        )
        self._asked_for = self._most
        try:
            *_, reply = await self._link.call(*trims, read, wait=wait)
        except UnreachableError:
            # Perhaps they are too large for the way, all at once.
            self._most = max(self._most // 4, 1)
            raise
        self._most = min(self._most * 2, BATCH)
        self._read_lanes.clear()
        if isinstance(reply, ResponseError):
            raise RefusedError(explain(reply)) from reply
        found = cast(list[tuple[bytes, list[list[Reply]]]], reply or [])
        return {self._lanes[stream]: entries for stream, entries in found}

    def _trim(self, lane: Lane) -> Command:
        milliseconds, _, sequence = self._last[lane].partition(b"-")
        return ("XTRIM", self._streams[lane], "MINID", b"%s-%d" % (milliseconds, int(sequence) + 1))


def _entry(lane: Lane, fields: list[bytes]) -> Entry:
    # Whoever can write to the server can write anything there.
    try:
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        return Entry(
            lane,
            named[b"k"].decode(),
            named[b"r"].decode(),
            int(named[b"a"]),
            named[b"b"],
            named.get(b"m") == b"1",
        )
    except (KeyError, ValueError):
        return Entry(lane, "?", "", 0, b"")
