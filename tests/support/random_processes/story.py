"""The story of a plan that was played."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs import JobOutcome, job_attempt
from pipecat_jobs.bus._distributed.engine import Entry
from support.random_processes.plan import Ask, Kind, Plan
from support.redis.processes import Member
from support.tcp_proxy import TcpProxy


def worker_name(number: int) -> str:
    return f"w{number}"


@dataclass(eq=False)
class Actor:
    """A process, and how it ended."""

    number: int
    hosts: tuple[int, ...]
    member: Member
    proxy: TcpProxy
    read: list[Entry] = field(default_factory=list)
    was_expelled: bool = False
    killed_at: float | None = None
    left_at: float | None = None

    @property
    def is_alive(self) -> bool:
        return self.killed_at is None and self.left_at is None

    @property
    def expulsions(self) -> int:
        return self.member.bus.stats.expulsions

    def has_ended_by(self, moment: float) -> bool:
        return any(at is not None and at <= moment for at in (self.killed_at, self.left_at))

    def __str__(self) -> str:
        return f"process {self.number}"


@dataclass(eq=False)
class Asked:
    """A job as its requester saw it."""

    number: int
    ask: Ask
    actor: Actor
    started: float
    parent: "Run | None" = None
    events: list[tuple[str, str, dict[str, Any] | None]] = field(default_factory=list)
    cancelled: bool = False
    finale: bool = False
    ended: float | None = None
    error: BaseException | None = None
    outcomes: dict[str, JobOutcome] = field(default_factory=dict)

    @property
    def workers(self) -> list[str]:
        return [worker_name(number) for number in self.ask.workers]

    @property
    def runs_once(self) -> bool:
        return self.ask.once or self.ask.kind is Kind.PAY

    def __str__(self) -> str:
        return f"job {self.number} ({self.ask.kind} by {self.actor})"


@dataclass(eq=False)
class Run:
    """One run of a handler."""

    number: int
    asked: Asked
    worker: str
    actor: Actor
    message: BusJobRequestMessage
    attempt: int
    reports: int = 0
    end: str = ""

    @classmethod
    def begin(
        cls, number: int, asked: Asked, worker: str, actor: Actor, message: BusJobRequestMessage
    ) -> "Run":
        return cls(number, asked, worker, actor, message, job_attempt(message))

    @property
    def is_local(self) -> bool:
        return self.actor is self.asked.actor

    @property
    def goes_on(self) -> bool:
        return not self.end and self.actor.killed_at is None

    @property
    def response(self) -> dict[str, Any]:
        return {"job": self.asked.number, "run": self.number, "worker": self.worker}

    def __str__(self) -> str:
        return f"run {self.number} of {self.asked} by {self.worker} in {self.actor}"


@dataclass(eq=False)
class Story:
    """All processes, jobs and runs of a plan that was played."""

    plan: Plan
    actors: list[Actor] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    flushed_at: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    released: dict[int, asyncio.Event] = field(default_factory=dict)

    def runs_of(self, asked: Asked, worker: str) -> list[Run]:
        return [run for run in self.runs if run.asked is asked and run.worker == worker]

    def hosts_of(self, worker: str) -> list[Actor]:
        return [each for each in self.actors if worker in map(worker_name, each.hosts)]
