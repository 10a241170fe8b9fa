"""Plays a plan with processes around a real server, in real time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis

from pipecat_jobs import BaseWorker
from pipecat_jobs.bus._distributed.engine import Entry
from pipecat_jobs.bus.redis.script import LOAD
from support.random_processes.plan import (
    MOST,
    NAMES,
    Ask,
    Cancel,
    Cut,
    Expel,
    Flush,
    Garble,
    Join,
    Kill,
    Kind,
    Leave,
    Plan,
    Release,
    Repeat,
    Stall,
    Step,
)
from support.random_processes.story import Actor, Asked, Run, Story
from support.random_processes.workers import PoolWorker, see_through
from support.redis.processes import Member, until_async
from support.tcp_proxy import TcpProxy

#: The lease is short, since many steps last for one. Checks that need living processes look
#: whether one was declared dead: on a busy machine that happens.
LEASE = TAKEOVER = 0.4
ATTEMPTS = 3
#: Seconds in which every expected event happens, even on a very busy machine.
PATIENCE = 100.0

_ADD_FOR_MEMBER = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
end
"""
_GARBAGE: list[tuple[str | bytes, ...]] = [
    ("x", "y"),
    ("k", "m", "r", "", "a", "0", "b", "no envelope"),
    ("k", "m", "r", "nobody:1", "a", "1", "b", b"\xff\xfe"),
    ("k", "j", "r", "nobody:1", "a", "1", "b", "no envelope"),
    ("k", "l", "r", "nobody:none", "a", "1", "b", "attempts"),
    ("k", "c", "r", b"\xff:1", "a", "one", "b", ""),
    ("k", "x", "r", "", "a", "0", "b", "1 2 3|nobody:1"),
    ("k", "?", "r", "", "a", "0", "b", ""),
    ("k", "q", "r", "nobody:1", "a", "1", "b", "no envelope"),
    ("k", "y", "r", "nobody:1", "a", "0", "b", "no envelope"),
]
#: The kinds of keys of jobs: the word after the channel in a key.
BOOKS = {"jobs", "reqs", "held", "load", "queues", "queue", "waiting"}


class Stage:
    """Plays a plan.

    Args:
        plan: The plan.
        url: Where the server is.
        database: The database of the server that is this plan's alone.
    """

    def __init__(self, plan: Plan, url: str, database: int):
        self.story = Story(plan)
        self._url, self._database = url, database
        self._redis = Redis.from_url(f"{url}?db={database}", decode_responses=True)
        self._clock = asyncio.get_running_loop().time
        self._callers: dict[Asked, asyncio.Task[None]] = {}
        self._troubles: list[asyncio.Task[None]] = []
        self._departures: list[asyncio.Task[None]] = []
        self._unreachable: set[Actor] = set()

    async def play(self) -> Story:
        try:
            first = [await self._create(hosts) for hosts in self.story.plan.hosts]
            await asyncio.gather(*(actor.member.__aenter__() for actor in first))
            for step, pause in self.story.plan.steps:
                unreachable_first = set(self._unreachable)
                await self._do(step)
                await asyncio.sleep(pause)
                for actor in unreachable_first & self._unreachable:
                    actor.proxy.block()
            await self._finale()
        finally:
            await self._redis.flushdb()
            await self._redis.aclose()
        return self.story

    # -- the steps ---------------------------------------------------------------------------

    async def _do(self, step: Step) -> None:
        match step:
            case Ask():
                actor = self._actor(step.process)
                if actor is not None:
                    self._ask(actor, step)
            case Release():
                self._gate(step.job % len(self.story.asked)).set()
            case Cancel():
                self._cancel(self.story.asked[step.job % len(self.story.asked)])
            case Join():
                if len(self.story.actors) < MOST:
                    await self._join(step.hosts)
            case Kill():
                actor = self._actor(step.process)
                if actor is not None and actor.number > 0:
                    await self._kill(actor)
            case Leave():
                actor = self._actor(step.process)
                if actor is not None and actor.number > 0:
                    actor.left_at = self._clock()
                    self._departures.append(asyncio.create_task(self._leave(actor, step)))
            case Expel():
                actor = self._actor(step.process)
                process = actor and actor.member.bus._process
                if actor is not None and process is not None:
                    actor.was_expelled = True
                    leave = process._channel.call("leave", process.id, 0)
                    # The scripts are loaded too, since the server may have forgotten them.
                    async with self._redis.pipeline() as pipe:
                        for command in (*LOAD, leave):
                            pipe.execute_command(*command)
                        await pipe.execute()
            case Cut():
                for actor in self._actors(step.process):
                    actor.proxy.reset()
            case Stall():
                for actor in self._actors(step.process):
                    self._troubles.append(asyncio.create_task(self._stall(actor, step)))
            case Flush():
                if step.scripts:
                    await self._redis.script_flush()
                else:
                    self.story.flushed_at.append(self._clock())
                    await self._redis.flushdb()
            case Repeat():
                actor = self._actor(step.process)
                if actor is not None and actor.read:
                    entry = actor.read[-1 - step.back % len(actor.read)]
                    await self._put(actor, entry.lane.stream, *_fields(entry))
            case Garble():
                actor = self._actor(step.process)
                if actor is not None:
                    await self._put(actor, "du"[step.what % 2], *_GARBAGE[step.what])

    def _actor(self, number: int) -> Actor | None:
        actor = self.story.actors[number % len(self.story.actors)]
        return actor if actor.is_alive else None

    def _actors(self, number: int | None) -> list[Actor]:
        if number is None:
            return [actor for actor in self.story.actors if actor.killed_at is None]
        actor = self._actor(number)
        return [] if actor is None else [actor]

    async def _join(self, hosts: tuple[int, ...]) -> None:
        actor = await self._create(hosts)
        await actor.member.__aenter__()

    async def _create(self, hosts: tuple[int, ...]) -> Actor:
        number = len(self.story.actors)
        proxy = await TcpProxy(self._url).__aenter__()
        workers = [PoolWorker(each, self) for each in hosts]
        member = Member(
            f"{proxy.url}/{self._database}",
            BaseWorker(f"requester{number}"),
            *workers,
            name=f"runner{number}",
            lease=LEASE,
            takeover=TAKEOVER,
            max_attempts=ATTEMPTS,
            secret=self.story.plan.secret,
        )
        actor = Actor(number, hosts, member, proxy)
        self.story.actors.append(actor)
        for worker in workers:
            worker.actor = actor
        bus: Any = member.bus
        read = bus.read

        def note(entry: Entry) -> None:
            if entry.kind in ("j", "m"):
                actor.read.append(entry)
            read(entry)

        bus.read = note
        return actor

    async def _kill(self, actor: Actor) -> None:
        """End a process as SIGKILL does: it sends nothing more, not even that it leaves."""
        actor.killed_at = self._clock()
        bus = actor.member.bus
        process, bus._process = bus._process, None
        if process is not None:
            for task in process._tasks:
                await bus.cancel_task(task)
            if process._reader is not None:
                await bus.cancel_task(process._reader)
            await process._close()
        for asked, call_task in self._callers.items():
            if asked.actor is actor:
                call_task.cancel()
        await actor.member.__aexit__(None, None, None)
        await actor.proxy.__aexit__(None, None, None)

    async def _leave(self, actor: Actor, leave: Leave) -> None:
        if leave.drains:
            await actor.member.bus.drain(leave.timeout)
        await actor.member.__aexit__(None, None, None)
        await actor.proxy.__aexit__(None, None, None)

    async def _stall(self, actor: Actor, stall: Stall) -> None:
        if stall.unreachable_first:
            actor.proxy.swallows_replies = True
            self._unreachable.add(actor)
        else:
            actor.proxy.block()
        await asyncio.sleep(stall.leases * LEASE)
        actor.proxy.swallows_replies = False
        if stall.unreachable_first:
            # The next steps rely on every message up to here.
            actor.proxy.reset()
        self._unreachable.discard(actor)
        actor.proxy.unblock()

    async def _put(self, actor: Actor, lane: str, *fields: str | bytes) -> None:
        process = actor.member.bus._process
        if process is not None:
            prefix = process._channel.prefix
            keys = (f"{prefix}:members", f"{prefix}:in:{process.id}:{lane}")
            await self._redis.eval(_ADD_FOR_MEMBER, 2, *keys, process.id, *fields)

    # -- jobs --------------------------------------------------------------------------------

    def _ask(self, actor: Actor, ask: Ask) -> Asked:
        asked = Asked(len(self.story.asked), ask, actor, self._clock())
        self.story.asked.append(asked)
        requester = actor.member.workers[0]
        assert isinstance(requester, BaseWorker)
        self._callers[asked] = asyncio.create_task(see_through(requester, asked))
        return asked

    def _cancel(self, asked: Asked) -> None:
        if asked in self._callers and asked.ended is None:
            asked.cancelled = True
            self._callers[asked].cancel()

    def _gate(self, number: int) -> asyncio.Event:
        return self.story.released.setdefault(number, asyncio.Event())

    def begin(self, worker: PoolWorker, message: BusJobRequestMessage) -> Run:
        assert message.payload is not None
        asked = self.story.asked[message.payload["job"]]
        run = Run.begin(len(self.story.runs), asked, worker.name, worker.actor, message)
        self.story.runs.append(run)
        return run

    async def until_released(self, asked: Asked) -> None:
        while asked.parent is not None:
            asked = asked.parent.asked
        await self._gate(asked.number).wait()

    async def ask_on_behalf(self, run: Run, worker: BaseWorker, ask: Ask) -> Asked:
        asked = Asked(len(self.story.asked), ask, run.actor, self._clock(), parent=run)
        self.story.asked.append(asked)
        await see_through(worker, asked)
        return asked

    # -- the end -----------------------------------------------------------------------------

    async def _finale(self) -> None:
        story = self.story
        await asyncio.gather(*self._troubles)
        hosted = {name for actor in story.actors if actor.is_alive for name in actor.hosts}
        await self._join(tuple(set(range(NAMES)) - hosted))
        await self._comes("handlers went on after the end of their jobs", self._needless)
        for number in range(len(story.asked)):
            self._gate(number).set()
        await self._comes(
            "jobs never ended", lambda: list(self._without_response(open_ended=False))
        )
        for asked in self._without_response(open_ended=True):
            asked.finale = True
            self._callers[asked].cancel()
        await self._comes("cancelled jobs never ended", self._unended)
        await self._comes("handlers never ended", lambda: [r for r in story.runs if r.goes_on])
        await self._comes(
            "processes never left", lambda: [t for t in self._departures if not t.done()]
        )
        for departure in self._departures:
            if departure.done():
                departure.result()
        await self._comes("processes keep jobs", lambda: list(self._kept()))
        await self._until_server("the server keeps jobs", self._books)
        await self._until_server("the server keeps dead processes", self._dead)
        await self._probe()
        await self._all_leave()
        if left := await self._redis.keys():
            story.problems.append(f"the server keeps {left}")

    async def _comes(self, problem: str, wrong: Callable[[], list[Any]]) -> None:
        async def now() -> list[Any]:
            return wrong()

        await self._until_server(problem, now)

    async def _until_server(self, problem: str, wrong: Callable[[], Awaitable[list[Any]]]) -> None:
        async def right() -> bool:
            return not await wrong()

        try:
            await until_async(right, timeout=PATIENCE)
        except TimeoutError:
            self.story.problems.append(f"{problem}: {', '.join(map(str, await wrong()))}")

    def _needless(self) -> list[Run]:
        """Runs of jobs that have ended, or that another process does."""
        running = [run for run in self.story.runs if run.goes_on]
        last = {(run.asked, run.worker): run for run in running}
        return [
            run
            for run in running
            if run.asked.ended is not None
            or run.asked.actor.killed_at is not None
            or run is not last[run.asked, run.worker]
        ]

    def _without_response(self, *, open_ended: bool) -> Iterator[Asked]:
        for asked in self._callers:
            if asked.ended is None and asked.ask.kind.gets_response is not open_ended:
                yield asked

    def _leaving(self) -> list[asyncio.Task[None]]:
        return [departure for departure in self._departures if not departure.done()]

    def _unended(self) -> list[Asked]:
        return [asked for asked in self.story.asked if asked.ended is None]

    def _alive(self) -> list[Actor]:
        return [actor for actor in self.story.actors if actor.is_alive]

    def _kept(self) -> Iterator[str]:
        for actor in self._alive():
            bus = actor.member.bus
            open_jobs = bus._router.open_jobs
            for what, kept in (
                ("asked", open_jobs.list_requested()),
                ("held", open_jobs.list_held()),
                ("is leaving", open_jobs._leaving),
                ("sends", bus._outbox.list_tried()),
                *((f"{worker} does", worker.active_jobs) for worker in actor.member.workers),
                *((f"{worker} asked", worker.job_groups) for worker in actor.member.workers),
            ):
                if kept:
                    yield f"{actor}: {what} {kept}"

    async def _books(self) -> list[str]:
        keys: list[str] = await self._redis.keys()
        return [key for key in keys if key.split(":")[2] in BOOKS]

    async def _dead(self) -> list[str]:
        """Processes that the server knows although they have ended, and those that it lacks."""
        alive = {process.id for actor in self._alive() if (process := actor.member.bus._process)}
        prefix = next(iter(self._alive())).member.bus._channel.prefix
        members = set(await self._redis.zrange(f"{prefix}:members", 0, -1))
        keys: list[str] = await self._redis.keys()
        of_members = {key.split(":")[3] for key in keys if key.split(":")[2] in ("proc", "hosted")}
        return sorted((members ^ alive) | (of_members - alive))

    async def _probe(self) -> None:
        """Every worker responds, and its slots are free."""
        requester = self.story.actors[0]
        names = tuple(range(NAMES))
        for kind in (Kind.ECHO, Kind.NARROW):
            asked = self._ask(requester, Ask(0, names, kind))
            self._gate(asked.number).set()
            await self._comes(f"{kind} gets no response", self._unended)

    async def _all_leave(self) -> None:
        alive = self._alive()
        leaving = [actor.member.__aexit__(None, None, None) for actor in alive]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*leaving)
                alive = []
        self.story.problems.extend(f"{actor} cannot leave" for actor in alive)
        for actor in self.story.actors:
            await actor.proxy.__aexit__(None, None, None)


def _fields(entry: Entry) -> tuple[str | bytes, ...]:
    return ("k", entry.kind, "r", entry.ref, "a", str(entry.attempt), "b", entry.body)
