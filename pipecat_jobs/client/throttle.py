"""Limits how often updates are sent: the latest one replaces those that wait."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Update = TypeVar("Update")


class Throttle(Generic[Update]):
    """Sends the first update at once and, after that, the latest one per interval."""

    __slots__ = ("_interval", "_send", "_timer", "_waiting", "latest")

    def __init__(self, interval: float, send: Callable[[Update], None]):
        #: The last update that was pushed, sent or not.
        self.latest: Update | None = None
        self._interval = interval
        self._send = send
        self._waiting: Update | None = None
        self._timer: asyncio.TimerHandle | None = None

    def push(self, update: Update) -> None:
        """Send an update, now or at the end of the interval."""
        self.latest = update
        if self._timer is None:
            self._send_now(update)
        else:
            self._waiting = update

    def flush(self) -> None:
        """Send the update that waits, if one does, and stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is not None:
            update, self._waiting = self._waiting, None
            self._send(update)

    def _send_now(self, update: Update) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._end_interval)
        self._send(update)

    def _end_interval(self) -> None:
        self._timer = None
        if self._waiting is not None:
            update, self._waiting = self._waiting, None
            self._send_now(update)
