"""The story of a plan that was played."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pipecat.bus import (
    BusJobRequestMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs import JobGroup, JobOutcome
from support.random_jobs.plan import (
    Form,
    Plan,
    Request,
    Work,
)


@dataclass(eq=False)
class Asked:
    """A request as its requester saw it."""

    number: int
    request: Request
    requester: str
    job_id: str | None
    started: float
    parent: "Run | None" = None
    group: JobGroup | None = None  # of the forms that give one
    entered: bool = False
    body_ended: float | None = None
    events: list[Any] = field(default_factory=list)
    late_events: list[Any] = field(default_factory=list)  # after the loop had ended
    cancelled_at: float | None = None
    group_cancelled_at: float | None = None
    finale: bool = False
    ended: float | None = None
    error: BaseException | None = None
    outcomes: dict[str, JobOutcome] = field(default_factory=dict)
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def workers(self) -> list[str]:
        return [worker_name(work.worker) for work in self.request.works]

    @property
    def waits(self) -> bool:
        """Whether the requester waits for the end."""
        return self.request.form not in (Form.REQUEST_JOB, Form.REQUEST_JOB_GROUP)

    @property
    def deadline(self) -> float | None:
        timeout = self.request.timeout
        return None if timeout is None else self.started + timeout

    def __str__(self) -> str:
        return f"request {self.number} ({self.request.form} by {self.requester})"


@dataclass(eq=False)
class Run:
    """One run of a handler."""

    worker: str
    message: BusJobRequestMessage
    asked: Asked
    work: Work
    started: float
    task: asyncio.Task[Any] | None
    sent_statuses: list[JobStatus] = field(default_factory=list)
    reports: int = 0
    resisted: bool = False
    raised: BaseException | None = None
    ended: float | None = None

    @property
    def response(self) -> dict[str, Any]:
        return {"request": self.asked.number, "worker": self.worker, "job": self.message.job_id}

    def __str__(self) -> str:
        return f"run of {self.asked} at {self.worker}"


@dataclass(eq=False)
class Story:
    """All requests, runs and hook calls of a plan that was played."""

    plan: Plan
    asked: list[Asked] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    hooks: list[tuple[str, str, str, str]] = field(default_factory=list)  # worker, hook, job, from
    stopped: dict[str, float] = field(default_factory=dict)
    lost: dict[tuple[str, str], float] = field(default_factory=dict)
    never_ended: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    loop_errors: list[str] = field(default_factory=list)
    sent_responses: list[tuple[str, str, str]] = field(default_factory=list)  # from, to, job

    def runs_of(self, asked: Asked, worker: str) -> list[Run]:
        return [run for run in self.runs if run.asked is asked and run.worker == worker]


def worker_name(number: int) -> str:
    return f"w{number}"


class BodyError(Exception):
    """The exception that the body of a requester raises."""


class HandlerError(Exception):
    """The exception that a handler raises."""
