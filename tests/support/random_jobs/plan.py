"""Schedules for the property test: what a plan says, and what happened when it ran.

A `Plan` is plain data: some workers, a bus that misbehaves, and what is done when. `run_plan()`
plays it on virtual time and returns the `Story`: every request that was made and how it ended for
its caller, and every run of a handler. `test_property.py` invents plans and says what has to hold
of their stories.

The last act of every plan is its *finale*: long after everything that ends by itself has ended,
every caller still waiting is cancelled. What is left after that is left for ever.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, cast

from pipecat.bus import (
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamEndMessage,
)

from pipecat_jobs.testing import Faults


class _Choice(StrEnum):
    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class _Readable:
    """Prints what differs from the defaults, in a form that can be pasted into a test."""

    def _said(self) -> dict[str, object]:
        every = {each.name: each.default for each in fields(cast(Any, self))}
        return {name: getattr(self, name) for name in every if getattr(self, name) != every[name]}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._said().items())
        return f"{type(self).__name__}({said})"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """What Hypothesis prints with."""
        with printer.group(4, f"{type(self).__name__}(", ")"):
            for position, (name, value) in enumerate(self._said().items()):
                if position:
                    printer.text(",")
                    printer.breakable()
                printer.text(f"{name}=")
                printer.pretty(value)


@dataclass(frozen=True, repr=False)
class Moment(_Readable):
    """A point in time: seconds, and then some turns of the event loop, where races live."""

    seconds: float = 0.0
    turns: int = 0


class Route(_Choice):
    """Which handler a request is for."""

    FREE = "free"  # @job, any number at once
    SEQUENTIAL = "sequential"  # @job(sequential=True)
    NARROW = "narrow"  # @job(max_concurrency=1)
    STREAM = "stream"  # an async generator
    UNNAMED = "unnamed"  # no name: on_job_request()
    UNKNOWN = "unknown"  # a name that nobody handles


class Ending(_Choice):
    """How a handler ends."""

    RETURNS = "returns"
    ANSWERS = "answers"
    ANSWERS_URGENTLY = "answers urgently"
    ANSWERS_TWICE = "answers twice"
    ANSWERS_LATER = "answers later"  # from another task, after the handler has returned
    LINGERS = "lingers"  # answers and goes on for a while
    STREAMS = "streams"  # by hand, with send_job_stream_*()
    FAILS = "fails"
    ERRS = "errs"
    RAISES = "raises"
    GIVES_UP = "gives up"  # raises CancelledError of its own accord
    RETURNS_JUNK = "returns junk"
    SAYS_NOTHING = "says nothing"
    NEVER_ENDS = "never ends"


class Body(_Choice):
    """What the caller does inside ``async with``."""

    PASSES = "passes"
    LISTENS = "listens"  # async for until the job is over
    LISTENS_ONCE = "listens once"  # leaves the loop at the first event
    LISTENS_AGAIN = "listens again"  # a second loop after the first
    TAKES_LONG = "takes long"
    RAISES = "raises"


class Form(_Choice):
    """By which method a request is made."""

    JOB = "job"
    JOB_GROUP = "job_group"
    REQUEST_JOB = "request_job"
    REQUEST_JOB_GROUP = "request_job_group"
    CREATE_AND_WAIT = "create_job_group_and_request_job"


@dataclass(frozen=True, repr=False)
class Work(_Readable):
    """What a worker is asked for, and what its handler does with that."""

    worker: int
    takes: float = 0.0
    reports: int = 0
    asks: "Request | None" = None
    resists: float = 0.0  # seconds for which it ignores its first cancellation
    ending: Ending = Ending.RETURNS


@dataclass(frozen=True, repr=False)
class Request(_Readable):
    """What is asked of whom, and how."""

    works: tuple[Work, ...]
    form: Form = Form.JOB
    route: Route = Route.FREE
    timeout: float | None = None
    cancel_on_error: bool = True
    job_id: str | None = None
    body: Body = Body.PASSES


@dataclass(frozen=True, repr=False)
class Call(_Readable):
    """A worker makes a request; the other times count from there."""

    at: Moment
    asker: int
    request: Request
    cancelled: Moment | None = None  # the calling task
    called_off: Moment | None = None  # cancel_job_group()
    nudged: Moment | None = None  # request_job_update()


@dataclass(frozen=True, repr=False)
class Stop(_Readable):
    """A worker ends, or is cancelled."""

    at: Moment
    worker: int
    gracefully: bool = True


@dataclass(frozen=True, repr=False)
class Lose(_Readable):
    """An asker is told that a worker is gone."""

    at: Moment
    asker: int
    worker: int


@dataclass(frozen=True, repr=False)
class Toggle(_Readable):
    """A worker becomes active or inactive."""

    at: Moment
    worker: int
    active: bool


class Forgery(_Choice):
    """What a stranger sends about the latest job."""

    ANSWER = "answer"
    STREAM_END = "stream end"
    UPDATE = "update"
    CANCEL = "cancel"


@dataclass(frozen=True, repr=False)
class Forge(_Readable):
    """Somebody who has nothing to do with the latest job sends a message about it."""

    at: Moment
    what: Forgery


Action = Call | Stop | Lose | Toggle | Forge


class Hooks(_Choice):
    """What a worker's ``on_job_*`` overrides do after they have taken note."""

    NONE = "none"  # not overridden at all
    QUICK = "quick"
    RAISE = "raise"
    SLOW = "slow"


@dataclass(frozen=True, repr=False)
class WorkerPlan(_Readable):
    """A worker. Worker *i* of a plan is called ``w<i>``; a number beyond is nobody's."""

    plain: bool = False  # Pipecat's own, without our mixin
    active: bool = True
    starts_at: float = 0.0
    hooks: Hooks = Hooks.NONE
    takes_unnamed: bool = True  # overrides on_job_request()
    one_unnamed_at_a_time: bool = False
    takes_jobs_when_inactive: bool = True


@dataclass(frozen=True, repr=False)
class Plan(_Readable):
    """A whole schedule."""

    workers: tuple[WorkerPlan, ...]
    actions: tuple[Action, ...]
    faults: Faults | None = None
    seed: int = 0

    @property
    def calls(self) -> list[Call]:
        return [action for action in self.actions if isinstance(action, Call)]

    @property
    def requests(self) -> list[Request]:
        """Every request, those that handlers make included."""
        found = [call.request for call in self.calls]
        for request in found:
            found.extend(work.asks for work in request.works if work.asks is not None)
        return found

    @property
    def longest_delay(self) -> float:
        """How long the bus may keep a message, or a publisher, at most."""
        return self.faults.max_delay if self.faults is not None else 0.0

    @property
    def loses_messages(self) -> bool:
        return self.faults is not None and self.faults.drop > 0

    def worker(self, number: int) -> WorkerPlan | None:
        return self.workers[number] if number < len(self.workers) else None


#: When the finale comes, and how long things have to come to rest after it: far more than any
#: chain of delays in a plan adds up to, and free of charge on virtual time.
FINALE_AT = 300.0
REST = 60.0

ANSWERS = (BusJobResponseMessage, BusJobResponseUrgentMessage, BusJobStreamEndMessage)

LINGER = 0.3
LATER = 0.2
LONG_BODY = 0.4
SLOW_HOOK = 0.3
