"""The inbox of this process: two streams that it reads."""

import asyncio
from collections.abc import Callable
from typing import cast

from redis.exceptions import ResponseError

from pipecat_jobs.bus._distributed.engine import Entry, EntryKind, Lane, UnreachableError
from pipecat_jobs.bus.redis.link import Command, Link, RefusedError, Reply
from pipecat_jobs.bus.redis.refusals import explain

#: The most entries of one stream that one read returns.
BATCH = 64
#: Seconds that a read waits for an entry, before it checks that the server is still there.
_READ_WAIT = 5.0
_LANES: tuple[Lane, ...] = (Lane.URGENT, Lane.DATA)


class Inbox:
    """The urgent and the data stream of a process, and how far they have been read."""

    def __init__(self, streams: tuple[str, str], link: Link):
        self._link = link
        self._streams = dict(zip(_LANES, streams, strict=True))
        self._lanes = {stream.encode(): lane for lane, stream in self._streams.items()}
        self._last = dict.fromkeys(self._streams, b"0-0")
        self._read_lanes: set[Lane] = set()
        self._most = self._requested = BATCH

    async def check(self) -> None:
        """Raise :class:`RefusedError` if this process may not read and trim its streams."""
        read: Command = ("XREAD", "COUNT", 1, "STREAMS", *self._streams.values(), "$", "$")
        await self._link.demand(*map(self._make_trim, _LANES), read)

    async def read(self, take: Callable[[Entry], None]) -> None:
        """Wait for entries, and call ``take`` with each of them, with all urgent ones first."""
        found = await self._fetch(tuple(self._streams), wait=_READ_WAIT)
        urgent = found.pop(Lane.URGENT, [])
        while urgent:
            self._take_all(Lane.URGENT, urgent, take)
            full = len(urgent) == self._requested
            urgent = (await self._fetch((Lane.URGENT,))).get(Lane.URGENT, []) if full else []
        for lane, entries in found.items():
            self._take_all(lane, entries, take)
        # Responses that are made at once are sent before the next read. That takes two turns of the
        # event loop: one to make them, one to send them.
        for _ in range(2):
            await asyncio.sleep(0)

    def _take_all(
        self, lane: Lane, entries: list[list[Reply]], take: Callable[[Entry], None]
    ) -> None:
        for identifier, fields in entries:
            self._last[lane] = cast(bytes, identifier)
            self._read_lanes.add(lane)
            take(_parse_entry(lane, cast(list[bytes], fields)))

    async def _fetch(
        self, lanes: tuple[Lane, ...], wait: float = 0
    ) -> dict[Lane, list[list[Reply]]]:
        trims = [self._make_trim(lane) for lane in self._read_lanes]
        block: Command = ("BLOCK", round(wait * 1000)) if wait else ()
        read: Command = (
            *("XREAD", "COUNT", self._most, *block, "STREAMS"),
            *(self._streams[lane] for lane in lanes),
            *(self._last[lane] for lane in lanes),
        )
        self._requested = self._most
        try:
            *_, reply = await self._link.call(*trims, read, wait=wait)
        except UnreachableError:
            # The reply may be too large for a slow network, so the next one is made smaller.
            self._most = max(self._most // 4, 1)
            raise
        self._most = min(self._most * 2, BATCH)
        self._read_lanes.clear()
        if isinstance(reply, ResponseError):
            raise RefusedError(explain(reply)) from reply
        found = cast(list[tuple[bytes, list[list[Reply]]]], reply or [])
        return {self._lanes[stream]: entries for stream, entries in found}

    def _make_trim(self, lane: Lane) -> Command:
        milliseconds, _, sequence = self._last[lane].partition(b"-")
        return ("XTRIM", self._streams[lane], "MINID", b"%s-%d" % (milliseconds, int(sequence) + 1))


def _parse_entry(lane: Lane, fields: list[bytes]) -> Entry:
    # Another program may have written any fields to the stream.
    try:
        named = dict(zip(fields[::2], fields[1::2], strict=True))
        return Entry(
            lane,
            EntryKind(named[b"k"].decode()),
            named[b"r"].decode(),
            int(named[b"a"]),
            named[b"b"],
            named.get(b"m") == b"1",
        )
    except (KeyError, ValueError):
        return Entry(lane, EntryKind.UNREADABLE, "", 0, b"")
