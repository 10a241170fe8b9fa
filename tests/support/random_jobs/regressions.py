"""Schedules that have failed before; the property test plays them before the others."""

from pipecat_jobs.testing import Faults
from support.random_jobs.plan import (
    Body,
    Call,
    Ending,
    Form,
    Hooks,
    Lose,
    Moment,
    Plan,
    Request,
    Stop,
    Toggle,
    Work,
    WorkerPlan,
)

#: The comment above each says what it tests. Worker 0 is the requester.
ONCE_BROKEN = [
    # The response is being published, slowly, when its worker ends.
    Plan(
        workers=(WorkerPlan(), WorkerPlan()),
        actions=(
            Call(at=Moment(), requester=0, request=Request(works=(Work(worker=1),))),
            Stop(at=Moment(seconds=2.0), worker=1),
        ),
        faults=Faults(slow_publish=1.0, max_delay=3.0),
    ),
    # The request is being published when its deadline passes.
    Plan(
        workers=(WorkerPlan(),),
        actions=(
            Call(at=Moment(), requester=0, request=Request(works=(Work(worker=0),), timeout=0.0)),
        ),
        faults=Faults(slow_publish=1.0, max_delay=3.0),
        seed=1,
    ),
    # An update arrives in time, and its hook returns after the deadline.
    Plan(
        workers=(WorkerPlan(hooks=Hooks.SLOW), WorkerPlan(), WorkerPlan()),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(
                    works=(Work(worker=2, ending=Ending.SAYS_NOTHING), Work(worker=1, reports=1)),
                    form=Form.JOB_GROUP,
                    timeout=0.3,
                    cancel_on_error=False,
                    body=Body.LISTENS_AGAIN,
                ),
            ),
        ),
    ),
    # Updates queue behind a slow hook.
    Plan(
        workers=(WorkerPlan(hooks=Hooks.SLOW), WorkerPlan()),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(works=(Work(worker=1, reports=3),), body=Body.LISTENS),
            ),
        ),
    ),
    # A duplicate of a refused request arrives when it would no longer be refused.
    Plan(
        workers=(WorkerPlan(), WorkerPlan(active=False, takes_jobs_when_inactive=False)),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(works=(Work(worker=1, ending=Ending.NEVER_ENDS),), timeout=1.0),
            ),
            Toggle(at=Moment(seconds=0.1), worker=1, active=True),
        ),
        faults=Faults(delay=1.0, duplicate=1.0, max_delay=0.3),
    ),
    # A refused job is cancelled, and then another job has its id.
    Plan(
        workers=(WorkerPlan(active=False, takes_jobs_when_inactive=False),),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(works=(Work(worker=0),), job_id="mine"),
                group_cancelled=Moment(),
            ),
            Call(
                at=Moment(seconds=0.1),
                requester=0,
                request=Request(works=(Work(worker=0),), job_id="mine"),
            ),
        ),
    ),
    # A response arrives after its job was cancelled and its id is used again.
    Plan(
        workers=(WorkerPlan(), WorkerPlan()),
        actions=(
            Call(
                at=Moment(seconds=1.3),
                requester=0,
                request=Request(works=(Work(worker=1),), job_id="mine"),
            ),
            Call(
                at=Moment(seconds=0.3),
                requester=0,
                request=Request(works=(Work(worker=1, takes=1.0),), job_id="mine"),
                group_cancelled=Moment(seconds=1.0),
            ),
        ),
    ),
    # A worker is reported as lost although it runs.
    Plan(
        workers=(WorkerPlan(), WorkerPlan()),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(works=(Work(worker=1, ending=Ending.NEVER_ENDS),)),
            ),
            Lose(at=Moment(seconds=0.1), requester=0, worker=1),
        ),
    ),
    # A worker of Pipecat's own never sees the request, and then ends.
    Plan(
        workers=(WorkerPlan(), WorkerPlan(plain=True, active=False)),
        actions=(
            Call(at=Moment(), requester=0, request=Request(works=(Work(worker=1),))),
            Stop(at=Moment(seconds=0.5), worker=1),
        ),
    ),
    # A cancel overtakes its request while another requester has a job of that id at the worker.
    Plan(
        workers=(WorkerPlan(), WorkerPlan(), WorkerPlan()),
        actions=(
            Call(
                at=Moment(),
                requester=0,
                request=Request(works=(Work(worker=2, takes=1.0),), job_id="mine"),
            ),
            Call(
                at=Moment(),
                requester=1,
                request=Request(works=(Work(worker=2, ending=Ending.NEVER_ENDS),), job_id="mine"),
                cancelled=Moment(seconds=0.1),
            ),
        ),
        faults=Faults(delay=0.7, max_delay=3.0),
        seed=3,
    ),
]
