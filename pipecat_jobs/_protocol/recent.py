"""Maps of bounded size: one keeps the latest keys, the other the keys of the last minutes."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Keeps the values of the latest keys.

    It tells a late or repeated message from a new one by the job's id, without keeping every job.
    """

    def __init__(self, capacity: int = 512):
        self._capacity = capacity
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def remember(self, key: Key, value: Value) -> None:
        """Keep a value as the newest."""
        items = self._items
        items[key] = value
        items.move_to_end(key)
        if len(items) > self._capacity:
            items.popitem(last=False)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, or None."""
        return self._items.get(key)

    def take(self, key: Key) -> Value | None:
        """Remove a key and return its value, or None."""
        return self._items.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)


class Expiring(Generic[Key, Value]):
    """Keeps the values of the keys of the last minutes, however many they are.

    It is for keys that must not be lost when many others follow, and that may never be read. Old
    keys are removed at the next use, so that it needs neither a task nor a timer.
    """

    def __init__(self, seconds: float = 300.0):
        self._seconds = seconds
        self._items: OrderedDict[Key, tuple[float, Value]] = OrderedDict()

    def remember(self, key: Key, value: Value) -> None:
        """Keep a value for the next minutes."""
        self._forget_old()
        self._items[key] = (self._now(), value)
        self._items.move_to_end(key)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, or None."""
        self._forget_old()
        item = self._items.get(key)
        return None if item is None else item[1]

    def take(self, key: Key) -> Value | None:
        """Remove a key and return its value, or None."""
        if not self._items:
            return None
        value = self.get(key)
        self._items.pop(key, None)
        return value

    def __len__(self) -> int:
        return len(self._items)

    def _forget_old(self) -> None:
        if not self._items:
            return
        before = self._now() - self._seconds
        while self._items and next(iter(self._items.values()))[0] < before:
            self._items.popitem(last=False)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
