"""A worker for the two halves without Pipecat: their runtime, and a bus of one event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusMessage
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup

from pipecat_jobs._executor.exchanges import Exchanges
from pipecat_jobs._executor.execution import find_current_job
from pipecat_jobs._executor.executor import Executor
from pipecat_jobs._executor.responses import Responses
from pipecat_jobs._protocol.handlers import HandlerSpec
from pipecat_jobs._protocol.interception import Interceptors
from pipecat_jobs._protocol.messages import ResponseMessage
from pipecat_jobs._protocol.runtime import StartableBus, WorkerHasEnded
from pipecat_jobs._protocol.tasks import deferred
from pipecat_jobs._requester.requester import Requester
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.steering import JobSteer

Result = TypeVar("Result")
Handler = Callable[[BusJobRequestMessage], Coroutine[Any, Any, dict[str, Any] | None]]


class NoHooks:
    """A worker without overrides and event handlers."""

    def overrides(self, event: str) -> bool:
        return False

    def listens(self, event: str) -> bool:
        return False

    def has_any(self, event: str) -> bool:
        return False

    def announce(self, event: str, message: object) -> None:
        pass

    async def fire(self, event: str, message: object) -> None:
        pass


class Watch:
    def __init__(self, stop: Callable[[], None]):
        self.stop = stop


class Network:
    """Workers by name, and the messages that they send each other."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.sent: list[BusMessage] = []
        self.ended: dict[str, str] = {}
        self.watched: dict[str, Callable[[str], None]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        #: Whether a requester waits for a worker to join.
        self.waited_for = asyncio.Event()
        self._joined = asyncio.Condition()

    async def join(self, worker: "Worker") -> None:
        async with self._joined:
            self.workers[worker.name] = worker
            self._joined.notify_all()

    def find_missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self.workers]

    def list_known(self) -> Sequence[str]:
        return list(self.workers)

    def shares_loop(self, name: str) -> bool:
        return name in self.workers

    def find_note_problem(self, name: str) -> str | None:
        return None

    async def wait_until_known(self, names: Sequence[str]) -> None:
        self.waited_for.set()
        async with self._joined:
            await self._joined.wait_for(lambda: set(names) <= set(self.workers))

    def watch_end(self, name: str, on_end: Callable[[str], None]) -> Watch:
        if name in self.ended:
            raise WorkerHasEnded(self.ended[name])
        self.watched[name] = on_end
        return Watch(lambda: self.watched.__delitem__(name))


class Worker:
    """Both halves of one worker; it is its own runtime."""

    kind = "Worker"
    bus: StartableBus | None = None

    def __init__(self, name: str, network: Network, handlers: dict[str, Handler] | None = None):
        self.name = name
        self.workers = network
        self._handlers = handlers or {}
        self.groups: dict[str, PipecatJobGroup] = {}
        self.requester = Requester(
            self,
            NoHooks(),
            Interceptors((), "interceptors"),
            self.groups,
            cancel_group=lambda job_id, reason: self.requester.cancel(job_id, reason),
            create_group=None,
            find_current_job=find_current_job,
            on_question=self.on_question,
        )
        self.active: dict[str, BusJobRequestMessage] = {}
        self.responses = Responses(self, self.active)
        self.executor = Executor(
            self,
            NoHooks(),
            Interceptors((), "interceptors"),
            self.responses,
            {job: HandlerSpec(job, job) for job in self._handlers},
            self._handlers.__getitem__,
            limits={},
            cancel_grace=1.0,
            stop_turns=None,
            exchanges=Exchanges(self, self.responses, self.on_steered),
        )

    async def on_steered(self, steer: JobSteer) -> None:
        pass

    async def on_question(self, question: JobQuestion) -> None:
        pass

    @staticmethod
    def clock() -> Callable[[], float]:
        return asyncio.get_running_loop().time

    def create_task(
        self, coroutine: Coroutine[Any, Any, Result], name: str
    ) -> asyncio.Task[Result]:
        task = asyncio.create_task(deferred(coroutine), name=name)
        self.workers.tasks.add(task)
        task.add_done_callback(self.workers.tasks.discard)
        return task

    async def send(self, message: BusMessage) -> None:
        self.workers.sent.append(message)
        target = self.workers.workers[message.target or ""]
        match message:
            case BusJobRequestMessage():
                target.executor.on_request(message, inactive=None)
            case BusJobCancelMessage():
                target.executor.on_cancel(message)
            case _:
                assert isinstance(message, ResponseMessage)
                target.requester.on_response(message)
