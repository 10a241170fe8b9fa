"""The rules and faults of `pipecat_jobs.testing.chaos_bus`."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pipecat.bus import BusMessage

from pipecat_jobs._protocol.checks import (
    check_callable,
    check_count,
    check_delay,
    check_probability,
)

Predicate: TypeAlias = Callable[[BusMessage], bool]

Match: TypeAlias = type[BusMessage] | tuple[type[BusMessage], ...] | Predicate
"""Selects messages: a message class, a tuple of them, or a predicate."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The probability of each fault of a `ChaosBus` with a seed.

    A delayed message is also reordered, because messages that are sent later overtake it.

    Parameters:
        delay: The probability, from 0 to 1, that a delivery is delayed.
        duplicate: The probability that a message is delivered twice.
        drop: The probability that a message is lost.
        slow_publish: The probability that ``publish()`` waits before it does anything.
        max_delay: The longest delay of a delivery or of ``publish()``, in seconds.

    Raises:
        InvalidJobTypeError: If a value is not a number.
        InvalidJobError: If a probability is not between 0 and 1, or ``max_delay`` is negative.

    Example::

        bus = ChaosBus(seed=7, faults=Faults(delay=0.3, duplicate=0.1, max_delay=0.05))
    """

    delay: float = 0.0
    duplicate: float = 0.0
    drop: float = 0.0
    slow_publish: float = 0.0
    max_delay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("delay", "duplicate", "drop", "slow_publish"):
            check_probability(name, getattr(self, name))
        check_delay("max_delay", self.max_delay)

    def draw(self, source: random.Random) -> "Fate":
        """Decide what happens to one message. Called by the bus."""
        # The number of draws is always the same, so that changing one probability does not change
        # what the seed decides about the other faults.
        drop, duplicate, slow, first, second = (source.random() for _ in range(5))
        slow_for, first_for, second_for = (source.uniform(0, self.max_delay) for _ in range(3))
        delays = [first_for if first < self.delay else 0.0]
        if duplicate < self.duplicate:
            delays.append(second_for if second < self.delay else 0.0)
        return Fate(
            publish_delay=slow_for if slow < self.slow_publish else 0.0,
            delays=() if drop < self.drop else tuple(delays),
        )


@dataclass(frozen=True, kw_only=True)
class Fate:
    """Decides what happens to one message."""

    #: How many seconds ``publish()`` waits first.
    publish_delay: float = 0.0
    #: For each copy that is delivered, its delay in seconds. Empty: the message is lost.
    delays: tuple[float, ...] = (0.0,)


class Rule:
    """A rule of a `ChaosBus`, returned by the method that added it.

    It applies until it was applied ``count`` times, or `remove()` is called.

    Example::

        bus = ChaosBus()
        rule = bus.drop(BusJobRequestMessage, count=1)
        await bus.publish(BusJobRequestMessage(source="requester", target="worker", job_id="1"))
        assert not rule.live and len(bus.dropped) == 1
    """

    def __init__(self, match: Match, count: int | None = None):
        self._matches = as_predicate(match)
        if count is not None:
            check_count("count", count, "a number of messages, or None for no limit", least=0)
        self._left = count
        self._removed = False

    @property
    def live(self) -> bool:
        """Whether the rule can still apply to a message."""
        return not self._removed and self._left != 0

    def applies_to(self, message: BusMessage) -> bool:
        """Return whether the rule would apply to a message that is published now.

        Args:
            message: The message to compare.

        Returns:
            True if the message matches and the rule is live.

        Example::

            request = BusJobRequestMessage(source="requester", target="worker", job_id="1")
            assert ChaosBus().drop(BusJobRequestMessage).applies_to(request)
        """
        return self.live and self._matches(message)

    def use(self) -> None:
        """Count a message that the rule was applied to. Called by the bus."""
        if self._left is not None:
            self._left -= 1

    def remove(self) -> None:
        """End the rule. It does not apply to later messages."""
        self._removed = True


class Delay(Rule):
    """Delivers matching messages later."""

    def __init__(self, match: Match, seconds: float, count: int | None = None):
        super().__init__(match, count)
        self.seconds = check_delay("seconds", seconds)


class Drop(Rule):
    """Loses matching messages."""


class Duplicate(Rule):
    """Delivers matching messages more than once."""

    def __init__(self, match: Match, times: int, count: int | None = None):
        super().__init__(match, count)
        self.times = check_count("times", times, "a number of copies")


@dataclass(eq=False)
class _Kept:
    message: BusMessage
    let_go: Callable[[bool], None]


class Held(Rule):
    """A rule that keeps matching messages until they are released.

    `ChaosBus.hold()` and `ChaosBus.block_publish()` return one.

    Example::

        bus = ChaosBus()
        held = bus.hold(BusJobRequestMessage)
        for job_id in ("1", "2"):
            request = BusJobRequestMessage(source="requester", target="worker", job_id=job_id)
            await bus.publish(request)
        assert [message.job_id for message in held.messages] == ["1", "2"]
        held.release()
        assert [message.job_id for message in bus.delivered] == ["1", "2"]
    """

    def __init__(self, match: Match):
        super().__init__(match)
        self._kept: list[_Kept] = []
        self._changed = asyncio.Event()

    @property
    def messages(self) -> list[BusMessage]:
        """The messages that are kept now, beginning with the oldest."""
        return [kept.message for kept in self._kept]

    async def wait(self, count: int = 1) -> list[BusMessage]:
        """Wait until at least ``count`` messages are kept at the same time.

        Args:
            count: How many messages to wait for.

        Returns:
            The messages that are kept then, at least ``count``, beginning with the oldest.

        Example::

            bus = ChaosBus()
            held = bus.hold(BusJobRequestMessage)
            request = BusJobRequestMessage(source="requester", target="worker", job_id="1")
            await bus.publish(request)
            assert await held.wait() == [request]
        """
        while len(self._kept) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.messages

    def release(self) -> None:
        """Deliver all kept messages, beginning with the oldest, and end the rule."""
        super().remove()
        self._let_all_go(deliver=True)

    def release_one(self) -> BusMessage:
        """Deliver the oldest kept message, and keep the others and later ones.

        Returns:
            The message that was released.

        Raises:
            LookupError: If no message is kept.

        Example::

            bus = ChaosBus()
            held = bus.hold(BusJobRequestMessage)
            for job_id in ("1", "2"):
                request = BusJobRequestMessage(source="requester", target="worker", job_id=job_id)
                await bus.publish(request)
            assert held.release_one().job_id == "1"
            assert len(held.messages) == 1
        """
        if not self._kept:
            raise LookupError("no message is held")
        kept = self._kept.pop(0)
        kept.let_go(True)
        return kept.message

    def remove(self) -> None:
        """End the rule. The messages that it keeps are lost."""
        super().remove()
        self._let_all_go(deliver=False)

    def keep(self, message: BusMessage, let_go: Callable[[bool], None]) -> None:
        """Keep a message. Called by the bus."""
        self._kept.append(_Kept(message, let_go))
        self._changed.set()

    async def keep_publisher(self, message: BusMessage) -> bool:
        """Keep a message and its publisher, and return whether to deliver it. Called by the bus."""
        released: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def let_go(deliver: bool) -> None:
            # A publisher that was cancelled still waits here until its task runs again.
            if not released.done():
                released.set_result(deliver)

        self.keep(message, let_go)
        try:
            return await released
        finally:
            self._kept = [kept for kept in self._kept if kept.let_go is not let_go]

    def _let_all_go(self, *, deliver: bool) -> None:
        released, self._kept = self._kept, []
        for kept in released:
            kept.let_go(deliver)


class BlockedPublish(Held):
    """A rule that makes ``publish()`` itself wait, as on a slow network.

    `ChaosBus.block_publish()` returns one.

    Example::

        bus = ChaosBus()
        blocked = bus.block_publish(BusJobRequestMessage)
        assert isinstance(blocked, BlockedPublish)
    """


def as_predicate(match: Match) -> Predicate:
    """Turn a message class, several of them or a predicate into a predicate."""
    if isinstance(match, type | tuple):
        return lambda message: isinstance(message, match)
    check_callable("match", match, "a message class, a tuple of them, or a predicate")
    return match
