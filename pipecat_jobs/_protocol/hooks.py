"""Running the hooks of a job: a bot's ``on_job_*`` overrides and event handlers.

Whatever they do, a job's outcome is decided without them: what they raise is logged with its
traceback, and they never run on the task that brings the worker its messages.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.tasks import RunningTask, log_raised

#: The events of a job at the worker that asked for it, each also a method to override.
REQUESTER_EVENTS = (
    "on_job_response",
    "on_job_update",
    "on_job_completed",
    "on_job_error",
    "on_job_stream_start",
    "on_job_stream_data",
    "on_job_stream_end",
)
#: All events of a job, each also a method to override.
JOB_EVENTS = (
    *REQUESTER_EVENTS,
    "on_job_request",
    "on_job_update_requested",
    "on_job_cancelled",
)

Step = Callable[[], Coroutine[Any, Any, None]]


async def guarded(where: str, call: Callable[[], Awaitable[object]]) -> None:
    """Run a bot builder's code; log what it raises, whatever that is."""
    task = RunningTask()
    try:
        await call()
    except BaseException as error:
        task.survive(error)
        _log_raised_by(where, error)


def call_guarded(where: str, call: Callable[[], object]) -> None:
    """Call a bot builder's function that does not wait; log what it raises, whatever that is."""
    try:
        call()
    except BaseException as error:
        RunningTask().survive(error)
        _log_raised_by(where, error)


def _log_raised_by(where: str, error: BaseException) -> None:
    log_raised(f"{where} raised {type(error).__name__}; going on", error)


class JobHooks(Protocol):
    """What a bot builder has attached to the job events of one worker."""

    def overrides(self, event: str) -> bool:
        """Return whether the worker's class overrides the hook of an event."""
        ...

    def listens(self, event: str) -> bool:
        """Return whether an event handler is registered."""
        ...

    def has_any(self, event: str) -> bool:
        """Return whether an override or an event handler runs at an event."""
        ...

    def announce(self, event: str, message: object) -> None:
        """Start the event handlers alone, each in a task of its own."""
        ...

    async def fire(self, event: str, message: object) -> None:
        """Call the override, then start the event handlers."""
        ...


class Steps:
    """Runs a job's hooks one after the other, in a task of their own.

    Each job has its own, so that its hooks fire in order and hold up no other job.
    """

    __slots__ = ("_runtime", "_waiting", "busy")

    def __init__(self, runtime: JobRuntime, *, held: bool = False):
        self.busy = held
        """Whether a step that is added now has to wait for others."""
        self._runtime = runtime
        self._waiting: deque[Step] | None = None

    @property
    def last(self) -> bool:
        """Whether nothing waits behind the step that is running."""
        return not self._waiting

    def run(self, step: Step) -> None:
        """Run a step after those that were added before."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(step)
        if not self.busy:
            self._begin(self._waiting)

    def release(self) -> None:
        """Let the steps that were held run, and those to come."""
        self.busy = False
        if self._waiting:
            self._begin(self._waiting)

    def _begin(self, waiting: deque[Step]) -> None:
        self.busy = True
        self._runtime.create_task(self._drain(waiting), "job_hooks")

    async def _drain(self, waiting: deque[Step]) -> None:
        try:
            while waiting:
                await waiting.popleft()()
        finally:
            self.busy = False
