"""A memory that forgets."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """What happened to the last few keys, in bounded space.

    A late or doubled message is told from a new one by what is remembered of its job; jobs are
    many, so only the latest are kept.

    Args:
        capacity: How many keys are kept; the oldest leaves first.
    """

    def __init__(self, capacity: int = 512):
        self._capacity = capacity
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def remember(self, key: Key, value: Value) -> None:
        """Keep a value as the newest.

        Args:
            key: What it belongs to.
            value: What to remember of it.
        """
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._capacity:
            self._items.popitem(last=False)

    def get(self, key: Key) -> Value | None:
        """Look a key up.

        Args:
            key: What to look for.

        Returns:
            What was remembered, or None.
        """
        return self._items.get(key)

    def take(self, key: Key) -> Value | None:
        """Drop a key, if it is there.

        Args:
            key: What to drop.

        Returns:
            What was remembered, or None.
        """
        return self._items.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)
