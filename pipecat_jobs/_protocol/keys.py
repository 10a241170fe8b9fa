"""``@job(key=...)``: which jobs of a handler run one at a time, and what a further one does."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from pipecat_jobs._protocol.checks import check_choice, check_instance, check_text
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError

#: What a job does while another one of the same key is open.
OnBusy: TypeAlias = Literal["queue", "refuse", "replace", "join", "steer"]

_WANTED = "the name of a field of the payload, or a tuple of names"


@dataclass(frozen=True, slots=True)
class KeyRule:
    """The rule of a handler with a key.

    Parameters:
        fields: The fields of the payload whose values are the key.
        on_busy: What a job does while another one of the same key is open.
    """

    fields: tuple[str, ...]
    on_busy: OnBusy = "queue"

    def find_problem(self, payload: Mapping[str, object] | None) -> str | None:
        """Find the field that keeps a payload from having a key.

        Returns:
            A sentence that names the field and says what to give; None when there is a key.
        """
        given = payload or {}
        for field in self.fields:
            if field not in given:
                return f"the payload has no field '{field}', which is the job's key; give it"
            if not _is_plain(given[field]):
                return (
                    f"the field '{field}' of the payload, which is the job's key, is "
                    f"{shorten(given[field])}; give a plain str, a finite number or a bool"
                )
        return None

    def find_key(self, payload: Mapping[str, object] | None) -> Hashable:
        """Find the key of a payload without a problem."""
        values = [(payload or {})[field] for field in self.fields]
        # 1 and True are equal in Python, and different keys.
        return tuple((isinstance(value, bool), value) for value in values)


def _is_plain(value: object) -> bool:
    # Only these types travel as they are on every bus.
    return type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


def check_key(where: str, key: object, on_busy: object) -> KeyRule | None:
    """Refuse a wrong ``key``, and an ``on_busy`` that is unknown or has no ``key``."""
    if on_busy is not None:
        check_choice(f"{where} on_busy", on_busy, get_args(OnBusy))
    if key is None:
        if on_busy is None:
            return None
        raise InvalidJobError(
            f"{where} on_busy={on_busy!r} says what a job does while another one of the same key "
            "is open; give key= as well"
        )
    fields = (key,) if isinstance(key, str) else check_instance(f"{where} key", key, tuple, _WANTED)
    if not fields:
        raise InvalidJobError(f"{where} key is empty; give {_WANTED}")
    names = tuple(check_text(f"{where} key", field, _WANTED) for field in fields)
    return KeyRule(names, cast(OnBusy, on_busy or "queue"))
