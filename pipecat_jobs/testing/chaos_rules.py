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
"""Which messages are meant: a message class, several of them, or a predicate."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often each fault strikes a message, for a `ChaosBus` driven by a seed.

    Messages are reordered by delaying some of them: messages sent meanwhile overtake them.

    Parameters:
        delay: Probability that a delivery is delayed.
        duplicate: Probability that a message is delivered twice.
        drop: Probability that a message is lost.
        slow_publish: Probability that ``publish`` waits before it does anything.
        max_delay: Longest delay of a delivery or of a publish, in seconds.

    Example::

        bus = ChaosBus(seed=7, faults=Faults(delay=0.3, duplicate=0.1, max_delay=0.05))
    """

    delay: float = 0.0
    duplicate: float = 0.0
    drop: float = 0.0
    slow_publish: float = 0.0
    max_delay: float = 0.01

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidJobTypeError: If a value is not a number.
            InvalidJobError: If a probability is not between 0 and 1, or ``max_delay`` is negative.
        """
        for name in ("delay", "duplicate", "drop", "slow_publish"):
            check_probability(name, getattr(self, name))
        check_delay("max_delay", self.max_delay)

    def draw(self, source: random.Random) -> "Fate":
        """Decide what happens to one message.

        Args:
            source: Where chance comes from.

        Returns:
            The message's fate.
        """
        # Always the same number of draws, so that changing one probability does not reshuffle
        # what the seed decides about everything else.
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
    """What happens to one message.

    Parameters:
        publish_delay: How long ``publish`` waits first, in seconds.
        delays: One delay in seconds for each copy that is delivered; empty if it is lost.
    """

    publish_delay: float = 0.0
    delays: tuple[float, ...] = (0.0,)


class Rule:
    """One rule of a `ChaosBus`, as returned by the method that added it.

    It applies until its count is used up or `remove()` is called.
    """

    def __init__(self, match: Match, count: int | None = None):
        """Initialize the rule.

        Args:
            match: The messages it applies to.
            count: How many messages it applies to at most; None for no limit.
        """
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
        """Whether the rule would apply to the message if it were published now.

        Args:
            message: The message in question.

        Returns:
            Whether it matches and the rule is still live.
        """
        return self.live and self._matches(message)

    def use(self) -> None:
        """Count one message the rule applied to. Called by the bus."""
        if self._left is not None:
            self._left -= 1

    def remove(self) -> None:
        """Take the rule away: later messages pass untouched."""
        self._removed = True


class Delay(Rule):
    """Delivers matching messages later."""

    def __init__(self, match: Match, seconds: float, count: int | None = None):
        """Initialize the rule.

        Args:
            match: The messages it applies to.
            seconds: How much later they are delivered.
            count: How many messages it applies to at most; None for no limit.
        """
        super().__init__(match, count)
        self.seconds = check_delay("seconds", seconds)


class Drop(Rule):
    """Loses matching messages."""


class Duplicate(Rule):
    """Delivers matching messages more than once."""

    def __init__(self, match: Match, times: int, count: int | None = None):
        """Initialize the rule.

        Args:
            match: The messages it applies to.
            times: How many copies are delivered besides the message itself.
            count: How many messages it applies to at most; None for no limit.
        """
        super().__init__(match, count)
        self.times = check_count("times", times, "a number of copies")


@dataclass(eq=False)
class _Kept:
    message: BusMessage
    let_go: Callable[[bool], None]


class Held(Rule):
    """Keeps matching messages until they are released.

    Returned by `ChaosBus.hold()` and `ChaosBus.block_publish()`.
    """

    def __init__(self, match: Match):
        """Initialize the rule.

        Args:
            match: The messages it applies to.
        """
        super().__init__(match)
        self._kept: list[_Kept] = []
        self._changed = asyncio.Event()

    @property
    def messages(self) -> list[BusMessage]:
        """The messages kept right now, oldest first."""
        return [kept.message for kept in self._kept]

    async def wait(self, count: int = 1) -> list[BusMessage]:
        """Wait until at least ``count`` messages are kept at the same time.

        Args:
            count: How many messages to wait for.

        Returns:
            The messages kept then, oldest first.
        """
        while len(self._kept) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.messages

    def release(self) -> None:
        """Deliver every kept message, oldest first, and end the rule."""
        super().remove()
        self._let_all_go(deliver=True)

    def release_one(self) -> BusMessage:
        """Deliver the oldest kept message and go on keeping the others.

        Returns:
            The message released.

        Raises:
            LookupError: If no message is kept.
        """
        if not self._kept:
            raise LookupError("no message is held")
        kept = self._kept.pop(0)
        kept.let_go(True)
        return kept.message

    def remove(self) -> None:
        """Take the rule away; the messages it still keeps are lost."""
        super().remove()
        self._let_all_go(deliver=False)

    def keep(self, message: BusMessage, let_go: Callable[[bool], None]) -> None:
        """Keep a message. Called by the bus."""
        self._kept.append(_Kept(message, let_go))
        self._changed.set()

    async def keep_publisher(self, message: BusMessage) -> bool:
        """Keep a message and its publisher waiting; return whether to deliver it."""
        released: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def let_go(deliver: bool) -> None:
            # A publisher may have been cancelled but not have run since.
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
    """Keeps ``publish`` itself waiting, as a bus on a slow network does."""


def as_predicate(match: Match) -> Predicate:
    """Turn a message class, several of them or a predicate into a predicate."""
    if isinstance(match, type | tuple):
        return lambda message: isinstance(message, match)
    check_callable("match", match, "a message class, a tuple of them, or a predicate")
    return match
