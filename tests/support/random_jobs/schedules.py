"""How hypothesis invents plans."""

from hypothesis import strategies as st

from pipecat_jobs.testing import Faults
from support.random_jobs.plan import (
    Body,
    Call,
    Ending,
    Forge,
    Forgery,
    Form,
    Hooks,
    Lose,
    Moment,
    Plan,
    Request,
    Route,
    Stop,
    Toggle,
    Work,
    WorkerPlan,
)

#: Only a few values, so that events often coincide.
SECONDS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 1.3])
MOMENTS = st.builds(Moment, SECONDS, st.integers(0, 12))
RARELY = st.sampled_from([False, False, False, False, True])
USUALLY = RARELY.map(lambda rare: not rare)
TIMEOUTS = st.sampled_from([1.0, 0.5, 0.3, 2.0, 0.1, 0.0])
ROUTES = st.sampled_from([*[Route.FREE] * 3, *[Route.STREAM] * 2, *Route])
BODIES = st.sampled_from([*[Body.PASSES] * 3, *[Body.LISTENS] * 2, *Body])
ENDINGS = st.sampled_from([*[Ending.RETURNS] * 3, *Ending])
JOB_IDS = st.sampled_from([None] * 5 + ["mine", "yours"])


@st.composite
def requests(draw: st.DrawFn, workers: int, lossy: bool, depth: int = 2) -> Request:
    form = draw(st.sampled_from([Form.JOB, Form.JOB_GROUP, *Form]))
    single = form in (Form.JOB, Form.REQUEST_JOB)
    asked = draw(
        st.lists(st.integers(0, workers - 1), min_size=1, max_size=1 if single else 3, unique=True)
    )
    if draw(RARELY) and draw(RARELY):
        asked[-1] = workers  # one more than there are: a worker of that name never starts
    return Request(
        works=tuple(draw(works(worker, workers, lossy, depth)) for worker in asked),
        form=form,
        route=draw(ROUTES),
        timeout=draw(TIMEOUTS if lossy else st.none() | TIMEOUTS),
        cancel_on_error=single or draw(st.booleans()),
        job_id=draw(JOB_IDS),
        body=draw(BODIES),
    )


@st.composite
def works(draw: st.DrawFn, worker: int, workers: int, lossy: bool, depth: int) -> Work:
    asks = depth > 0 and draw(RARELY)
    return Work(
        worker,
        takes=draw(SECONDS),
        reports=draw(st.integers(0, 2)),
        asks=draw(requests(workers, lossy, depth - 1)) if asks else None,
        resists=draw(st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.2, 1.5])),
        ending=draw(ENDINGS),
    )


@st.composite
def worker_plans(draw: st.DrawFn, asks: bool) -> WorkerPlan:
    return WorkerPlan(
        plain=not asks and draw(RARELY),
        active=draw(st.booleans()),
        starts_at=0.0 if asks else draw(st.sampled_from([0.0, 0.0, 0.0, 0.2, 0.7])),
        hooks=draw(st.sampled_from(Hooks)),
        takes_unnamed=draw(USUALLY),
        one_unnamed_at_a_time=draw(st.booleans()),
        takes_jobs_when_inactive=draw(USUALLY),
    )


@st.composite
def calls(draw: st.DrawFn, requesters: int, workers: int, lossy: bool) -> Call:
    return Call(
        at=draw(MOMENTS),
        requester=draw(st.integers(0, requesters - 1)),
        request=draw(requests(workers, lossy)),
        cancelled=draw(MOMENTS) if draw(RARELY) else None,
        group_cancelled=draw(MOMENTS) if draw(RARELY) else None,
        nudged=draw(MOMENTS) if draw(RARELY) else None,
    )


@st.composite
def plans(draw: st.DrawFn, lossy: bool = False) -> Plan:
    # The first one or two workers make the calls.
    requesters = draw(st.integers(1, 2))
    workers = requesters + draw(st.integers(0 if requesters > 1 else 1, 3))
    at_worker, at_requester = st.integers(0, workers - 1), st.integers(0, requesters - 1)
    others = st.one_of(
        st.builds(Stop, MOMENTS, at_worker, st.booleans()),
        st.builds(Lose, MOMENTS, at_requester, at_worker),
        st.builds(Toggle, MOMENTS, at_worker, st.booleans()),
        st.builds(Forge, MOMENTS, st.sampled_from(Forgery)),
    )
    return Plan(
        workers=tuple(draw(worker_plans(asks=n < requesters)) for n in range(workers)),
        actions=(
            *draw(st.lists(calls(requesters, workers, lossy), min_size=1, max_size=4)),
            *draw(st.lists(others, max_size=2)),
        ),
        faults=draw(weather(lossy)),
        seed=draw(st.integers(0, 1_000)),
    )


@st.composite
def weather(draw: st.DrawFn, lossy: bool) -> Faults | None:
    """The faults of the bus, with a longest delay above or below the grace period of a cancel."""
    if not lossy and draw(st.booleans()):
        return None
    chance = st.sampled_from([0.0, 0.3, 0.7])
    return Faults(
        delay=draw(chance),
        duplicate=draw(chance),
        drop=0.2 if lossy else 0.0,
        slow_publish=draw(chance),
        max_delay=draw(st.sampled_from([0.001, 0.3, 3.0])),
    )
