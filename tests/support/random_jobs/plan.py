"""Schedules for the property test: the plan, and the story of what happened when it ran.

A `Plan` is plain data: workers, a bus with faults, and timed actions. `run_plan()` plays it on
virtual time and returns the `Story`: every request and how it ended for its requester, and every
run of a handler. `test_random_jobs.py` has Hypothesis make plans, and checks their stories.

The last act of every plan is its *finale*: long after everything that ends by itself has ended,
every requester that still waits is cancelled. Anything left after that is left for ever.
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
    """Prints the values that differ from the defaults, in a form that can be pasted into a test."""

    def _said(self) -> dict[str, object]:
        every = {each.name: each.default for each in fields(cast(Any, self))}
        return {name: getattr(self, name) for name in every if getattr(self, name) != every[name]}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self._said().items())
        return f"{type(self).__name__}({said})"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """Hypothesis prints a plan with this method."""
        with printer.group(4, f"{type(self).__name__}(", ")"):
            for position, (name, value) in enumerate(self._said().items()):
                if position:
                    printer.text(",")
                    printer.breakable()
                printer.text(f"{name}=")
                printer.pretty(value)


@dataclass(frozen=True, repr=False)
class Moment(_Readable):
    """A point in time: seconds, and then some turns of the event loop, in which races occur."""

    seconds: float = 0.0
    turns: int = 0


class Route(_Choice):
    """Which handler a request is for."""

    FREE = "free"  # @job, any number at once
    SEQUENTIAL = "sequential"  # @job(sequential=True)
    NARROW = "narrow"  # @job(max_concurrency=1)
    STREAM = "stream"  # an async generator
    UNNAMED = "unnamed"  # no name: on_job_request()
    UNKNOWN = "unknown"  # a name without a handler


class Ending(_Choice):
    """How a handler ends."""

    RETURNS = "returns"
    RESPONDS = "responds"
    RESPONDS_URGENTLY = "responds urgently"
    RESPONDS_TWICE = "responds twice"
    RESPONDS_LATER = "responds later"  # from another task, after the handler has returned
    LINGERS = "lingers"  # responds and goes on for a while
    STREAMS = "streams"  # by hand, with send_job_stream_*()
    FAILS = "fails"
    ERRS = "errs"
    RAISES = "raises"
    GIVES_UP = "gives up"  # raises CancelledError of its own accord
    RETURNS_JUNK = "returns junk"
    SAYS_NOTHING = "says nothing"
    NEVER_ENDS = "never ends"


class Body(_Choice):
    """What the requester does inside ``async with``."""

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
    """The job that a worker is asked for, and what its handler does."""

    worker: int
    takes: float = 0.0
    reports: int = 0
    asks: "Request | None" = None
    resists: float = 0.0  # seconds for which it ignores its first cancellation
    ending: Ending = Ending.RETURNS


@dataclass(frozen=True, repr=False)
class Request(_Readable):
    """A request: its workers, its form and its options."""

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
    requester: int
    request: Request
    cancelled: Moment | None = None  # the task of the requester
    group_cancelled: Moment | None = None  # cancel_job_group()
    nudged: Moment | None = None  # request_job_update()


@dataclass(frozen=True, repr=False)
class Stop(_Readable):
    """A worker ends, or is cancelled."""

    at: Moment
    worker: int
    gracefully: bool = True


@dataclass(frozen=True, repr=False)
class Lose(_Readable):
    """A requester is notified that a worker is lost."""

    at: Moment
    requester: int
    worker: int


@dataclass(frozen=True, repr=False)
class Toggle(_Readable):
    """A worker becomes active or inactive."""

    at: Moment
    worker: int
    active: bool


class Forgery(_Choice):
    """A message that a worker without a part in the latest job sends about it."""

    RESPONSE = "response"
    STREAM_END = "stream end"
    UPDATE = "update"
    CANCEL = "cancel"


@dataclass(frozen=True, repr=False)
class Forge(_Readable):
    """A worker without a part in the latest job sends a message about it."""

    at: Moment
    what: Forgery


Action = Call | Stop | Lose | Toggle | Forge


class Hooks(_Choice):
    """What a worker's ``on_job_*`` overrides do after they have recorded their call."""

    NONE = "none"  # not overridden at all
    QUICK = "quick"
    RAISE = "raise"
    SLOW = "slow"


@dataclass(frozen=True, repr=False)
class WorkerPlan(_Readable):
    """A worker. Worker *i* of a plan is called ``w<i>``; no worker has a higher number."""

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
        """Every request, including those that handlers make."""
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


#: The time of the finale, and the time to settle after it: far more than any
#: chain of delays in a plan, which costs nothing on virtual time.
FINALE_AT = 300.0
REST = 60.0

RESPONDS = (BusJobResponseMessage, BusJobResponseUrgentMessage, BusJobStreamEndMessage)

LINGER = 0.3
LATER = 0.2
LONG_BODY = 0.4
SLOW_HOOK = 0.3
