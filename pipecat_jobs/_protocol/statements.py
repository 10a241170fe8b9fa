"""The facts about a job that a worker adds to its response.

The requester must not guess from an exception's name or a message's text whether a handler has
begun, or why a job was cancelled. The worker states both under one key of the response, which a
handler cannot set. Plain Pipecat workers and earlier releases do not send them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, cast

from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.outcomes import CancelReason, JobData, JobRefusal

#: The key of a response that is reserved for this package.
RESERVED_KEY = "pipecat_jobs"

Stated = TypeVar("Stated", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Statement:
    """The facts in a response; None for a fact that does not apply or is not stated."""

    refusal: JobRefusal | None = None
    cancel_reason: CancelReason | None = None
    #: The id of the open job because of which a job is refused.
    held_by: str | None = None

    def add_to(self, response: JobData) -> JobData:
        """Return the response with the facts added."""
        facts = {
            "refusal": self.refusal,
            "cancel_reason": self.cancel_reason,
            "held_by": self.held_by,
        }
        stated = {name: str(fact) for name, fact in facts.items() if fact is not None}
        return {**response, RESERVED_KEY: stated}


_NOTHING = Statement()


def read_statement(response: JobData | None) -> tuple[Statement, JobData | None]:
    """Split a response into its facts and the rest."""
    if not response or RESERVED_KEY not in response:
        return _NOTHING, response
    rest = {key: value for key, value in response.items() if key != RESERVED_KEY}
    stated: object = response[RESERVED_KEY]
    if not isinstance(stated, dict):
        return _NOTHING, rest
    facts = cast("Mapping[object, object]", stated)
    held_by = facts.get("held_by")
    statement = Statement(
        _member(JobRefusal, facts.get("refusal")),
        _member(CancelReason, facts.get("cancel_reason")),
        held_by if isinstance(held_by, str) else None,
    )
    return statement, rest


def _member(kind: type[Stated], value: object) -> Stated | None:
    return next((member for member in kind if member == value), None)


def check_response(response: JobData | None) -> JobData | None:
    """Refuse a handler's response or update that has the reserved key."""
    if response and RESERVED_KEY in response:
        raise InvalidJobError(
            f"the response or update has the key '{RESERVED_KEY}', under which pipecat-jobs states "
            "what it knows of the job; give the value another key"
        )
    return response
