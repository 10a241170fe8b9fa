"""Schedules for the property test of `RedisStreamsBus`, and how Hypothesis makes them.

A `Plan` is plain data: the processes, and the steps that happen to them and to their jobs.
`stage.py` plays it on a real server, in real time.
"""

from dataclasses import dataclass

from hypothesis import strategies as st

from support.random_jobs.plan import _Choice, _Readable

#: The workers that processes host, by number: ``w0`` and ``w1``.
NAMES = 2
#: The most processes that a plan begins with, and the most that it may have later.
FIRST, MOST = 4, 6


class Kind(_Choice):
    """What the handler of a job does. Most handlers first wait until the job is released."""

    ECHO = "echo"  # responds at once
    HOLD = "hold"
    NARROW = "narrow"  # one at a time in each process
    PAY = "pay"  # never begun twice
    STREAM = "stream"  # streams, waits, streams more
    REPORT = "report"  # the same with updates
    RAISE = "raise"
    STUBBORN = "stubborn"  # goes on for a moment after it was cancelled, and responds
    DELEGATE = "delegate"  # asks the other worker
    SILENT = "silent"  # returns without a response
    ENDLESS = "endless"  # never returns

    @property
    def gets_response(self) -> bool:
        return self not in (Kind.SILENT, Kind.ENDLESS)


@dataclass(frozen=True, repr=False)
class Ask(_Readable):
    """A process asks one worker, or a group."""

    process: int = 0
    workers: tuple[int, ...] = (0,)
    kind: Kind = Kind.HOLD
    timeout: float | None = None
    once: bool = False
    cancel_on_error: bool = True


@dataclass(frozen=True, repr=False)
class Release(_Readable):
    """The handlers of a job are released."""

    job: int = 0


@dataclass(frozen=True, repr=False)
class Cancel(_Readable):
    """The requester of a job is cancelled."""

    job: int = 0


@dataclass(frozen=True, repr=False)
class Kill(_Readable):
    """A process is killed."""

    process: int = 1


@dataclass(frozen=True, repr=False)
class Leave(_Readable):
    """A process ends in good order, with or without a drain before it."""

    process: int = 1
    drains: bool = True
    timeout: float | None = None


@dataclass(frozen=True, repr=False)
class Join(_Readable):
    """One more process joins."""

    hosts: tuple[int, ...] = (0,)


@dataclass(frozen=True, repr=False)
class Expel(_Readable):
    """The server declares a process dead that works normally."""

    process: int = 1


@dataclass(frozen=True, repr=False)
class Cut(_Readable):
    """The connections of one process break, or those of all."""

    process: int | None = 0


@dataclass(frozen=True, repr=False)
class Stall(_Readable):
    """The connection of a process passes no data in either direction, for a number of leases.

    If only the replies stop first, its calls until the next step arrive without a receipt.
    """

    process: int | None = 0
    leases: float = 2.0
    unreachable_first: bool = False


@dataclass(frozen=True, repr=False)
class Flush(_Readable):
    """The server loses all its data, or only its scripts."""

    scripts: bool = False


@dataclass(frozen=True, repr=False)
class Repeat(_Readable):
    """A process gets an earlier message again, such as its last request but one."""

    process: int = 1
    back: int = 0


@dataclass(frozen=True, repr=False)
class Garble(_Readable):
    """A client writes unreadable data into the inbox of a process."""

    process: int = 1
    what: int = 0


Step = Ask | Release | Cancel | Kill | Leave | Join | Expel | Cut | Stall | Flush | Repeat | Garble


@dataclass(frozen=True, repr=False)
class Plan(_Readable):
    """A whole schedule.

    Process 0 hosts no worker and runs from beginning to end, though it may be declared dead and
    join again. A number selects one of the processes, or of the jobs, that exist at that moment.
    """

    hosts: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[Step, float], ...]  # and the seconds until the next
    secret: str | None = None


_RARELY = st.sampled_from([False] * 5 + [True])
#: Many steps happen at the same moment, or while messages of the last one are on their way.
_PAUSES = st.sampled_from([0.0, 0.0, 0.001, 0.003, 0.01, 0.03])
_NUMBERS = st.integers(0, MOST - 1)
_WORKERS = st.sampled_from([(0,), (1,), (0,), (1,), (0, 1)])
_HOSTS = st.sampled_from([(0,), (1,), (0, 1), (0, 1), ()])
_KINDS = st.sampled_from([*Kind, Kind.HOLD, Kind.HOLD, Kind.PAY])

_ASKS = st.builds(
    Ask,
    process=st.sampled_from([0, 0, 0, 1, 2, 3]),
    workers=_WORKERS,
    kind=_KINDS,
    timeout=st.sampled_from([None, None, None, None, 0.1, 0.5]),
    once=_RARELY,
    cancel_on_error=st.booleans(),
)
_RELEASES = st.builds(Release, st.integers(0, 5))
_CANCELS = st.builds(Cancel, st.integers(0, 5))
_TROUBLES = st.one_of(
    st.builds(Kill, _NUMBERS),
    st.builds(Leave, _NUMBERS, _RARELY.map(lambda rare: not rare), st.sampled_from([None, 0.05])),
    st.builds(Join, _HOSTS),
    st.builds(Expel, _NUMBERS),
    st.builds(Cut, st.none() | _NUMBERS),
    st.builds(Stall, st.none() | _NUMBERS, st.sampled_from([0.2, 2.0]), st.booleans()),
    st.builds(Flush, st.booleans()),
    st.builds(Repeat, _NUMBERS, st.integers(0, 3)),
    st.builds(Garble, _NUMBERS, st.integers(0, 9)),
)
_STEPS = st.one_of(_ASKS, _ASKS, _RELEASES, _CANCELS, _TROUBLES, _TROUBLES)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    hosts = draw(st.lists(_HOSTS, min_size=1, max_size=FIRST - 1))
    secret = draw(st.sampled_from([None, "s3cret"]))
    steps = draw(st.lists(st.tuples(_STEPS, _PAUSES), min_size=4, max_size=14))
    return Plan(
        hosts=((), *hosts),
        steps=((draw(_ASKS), draw(_PAUSES)), *steps),
        secret=secret,
    )
