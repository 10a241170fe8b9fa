"""Everything this package raises.

What a job ends with derives from Pipecat's own ``JobError`` and ``JobGroupError``, so code that
catches those goes on working. Bad input is a ``ValueError`` (and a ``TypeError`` when the type is
wrong); a call about a job that is not open is a ``RuntimeError``, as it is in Pipecat.
"""

from collections.abc import Iterable, Mapping, Sequence

from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.pipeline.job_context import JobGroupError as PipecatJobGroupError

from pipecat_jobs._protocol.text import cut
from pipecat_jobs.outcomes import JobOutcome, JobRefusal, OutcomeStatus
from pipecat_jobs.outcomes import JobToolError as JobToolError


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


class JobError(PipecatJobError):
    """A job did not complete.

    Parameters:
        job_id: The job's id.
        job_name: The name it was asked under, or None.
        outcomes: How it ended for each worker asked, those that completed included.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        job_name: str | None = None,
        outcomes: Mapping[str, JobOutcome] | None = None,
    ):
        super().__init__(message)
        self.job_id = job_id
        self.job_name = job_name
        self.outcomes: dict[str, JobOutcome] = dict(outcomes or {})

    @property
    def failures(self) -> dict[str, JobOutcome]:
        """The outcomes of the workers that did not complete, by worker."""
        return {name: outcome for name, outcome in self.outcomes.items() if not outcome.completed}


class JobGroupError(JobError, PipecatJobGroupError):
    """A job group did not complete. ``outcomes`` says who failed, how and why."""


class JobTimeoutError(JobGroupError, TimeoutError):
    """The deadline passed before every worker had answered.

    Parameters:
        loop_blocked: Seconds for which the requester's event loop, at the least, did not run when
            the deadline passed, because something in it blocked; 0.0 when it ran.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        job_name: str | None = None,
        outcomes: Mapping[str, JobOutcome] | None = None,
        loop_blocked: float = 0.0,
    ):
        super().__init__(message, job_id=job_id, job_name=job_name, outcomes=outcomes)
        self.loop_blocked = loop_blocked


class WorkerNotReadyError(JobTimeoutError):
    """A worker was not ready to be asked by the deadline, or never will be: the bus cannot start.

    In the second case ``__cause__`` is what the bus raised when it was started.
    """


class JobCancelledError(JobGroupError):
    """The job was cancelled: by ``cancel_job_group()``, or because a worker stopped."""


class WorkerLostError(JobGroupError):
    """A worker went away without answering."""


class NoJobHandlerError(JobGroupError):
    """The worker has no handler for a job of this name."""


class JobRefusedError(JobGroupError):
    """The worker takes no such job now; the message says why."""


def _blocked(seconds: float, sharing_loop: Sequence[str]) -> str:
    whose = f"of {_listed(sharing_loop)} and the requester" if sharing_loop else "of the requester"
    return (
        f"; the event loop {whose} was blocked for at least {seconds:.1f} s: await "
        "asyncio.to_thread() for code that blocks, such as time.sleep()"
    )


def failure_of(
    *,
    job_id: str,
    job_name: str | None,
    outcomes: Mapping[str, JobOutcome],
    first: JobOutcome | None,
    single: bool,
    timeout: float | None,
    unready: Sequence[str],
    known_workers: Iterable[str],
    loop_blocked: float,
    sharing_loop: Sequence[str],
    bus_problem: str | None,
    bus_failure: Exception | None,
) -> JobError:
    """Build the exception for a job that did not complete.

    Args:
        job_id: The job's id.
        job_name: The name it was asked under, or None.
        outcomes: How it ended for each worker.
        first: The outcome that ended the group, or None when every worker was cancelled at once.
        single: Whether it was asked with ``job()``, which raises :class:`JobError`, rather than
            ``job_group()``, which raises :class:`JobGroupError`.
        timeout: The deadline the caller gave, in seconds.
        unready: Workers the request was never sent to, because they were not ready.
        known_workers: Names of the workers the requester's registry knows.
        loop_blocked: Seconds for which the event loop, at the least, did not run when the deadline
            passed.
        sharing_loop: The late workers that run in the requester's event loop.
        bus_problem: Why the bus can send nothing now, or None.
        bus_failure: What kept the bus from starting while the job waited for it, or None.

    Returns:
        The narrowest error that fits; its message names worker, job and cause.
    """
    job = f"job '{job_name}'" if job_name else f"job {job_id}"
    failures = {name: outcome for name, outcome in outcomes.items() if not outcome.completed}
    first = first or next(iter(failures.values()))
    status, worker = first.status, f"worker '{first.worker}'"
    error: type[JobError] = JobError if single else JobGroupError
    if bus_failure is not None:
        error = WorkerNotReadyError
        message = f"{job} was not sent, the bus could not start: {bus_failure}"
    elif status is OutcomeStatus.TIMED_OUT:
        if unready:
            late: type[JobTimeoutError] = WorkerNotReadyError
            message = (
                f"timeout: {job} was not sent, {_listed(unready)} not ready within {timeout:g} s; "
                f"known workers: {_listed(known_workers)}"
            )
            message += f"; {bus_problem}" if bus_problem else ""
        else:
            late = JobTimeoutError
            owing = [name for name, o in failures.items() if o.status is OutcomeStatus.TIMED_OUT]
            message = f"timeout: {job} got no answer from {_listed(owing)} within {timeout:g} s"
        if loop_blocked:
            message += _blocked(loop_blocked, sharing_loop)
        return late(
            message, job_id=job_id, job_name=job_name, outcomes=outcomes, loop_blocked=loop_blocked
        )
    if status is OutcomeStatus.CANCELLED:
        error = JobCancelledError
        message = f"{job} at {_listed(failures)} cancelled"
        message += f": {first.reason}" if first.reason else ""
    elif status is OutcomeStatus.LOST:
        error = WorkerLostError
        message = f"{worker} was lost before it answered {job}: {first.reason}"
    else:
        verb = "failed" if status is OutcomeStatus.FAILED else "errored"
        message = f"{worker} {verb} at {job}: {first.cause}"
        if first.refusal is not None:
            unknown = first.refusal is JobRefusal.NO_HANDLER
            error = NoJobHandlerError if unknown else JobRefusedError
            why = first.error.message if first.error is not None else first.refusal
            message = f"{worker} did not run {job}: {why}"
    return error(message, job_id=job_id, job_name=job_name, outcomes=outcomes)


class LLMTurnError(RuntimeError):
    """The LLM gave no whole answer: its provider failed or cut it off, or it said nothing.

    Parameters:
        worker: Name of the worker whose LLM it is.
        cause: What went wrong: the provider's own message or reason, where it gave one, and the
            address and cause where it could not be reached.
        text: What the LLM had said until then.
    """

    def __init__(self, worker: str, cause: str, *, text: str = ""):
        super().__init__(f"the LLM turn of worker '{worker}' gave no answer: {cause}")
        self.worker = worker
        self.cause = cause
        self.text = text


class LLMTurnInterruptedError(LLMTurnError):
    """Something other than its own job stopped the turn: a user who spoke, or the worker's end."""


class LLMTurnTimeoutError(LLMTurnError, TimeoutError):
    """The turn's deadline passed first."""


class InvalidJobError(ValueError):
    """An argument or an option cannot be used; the message says what to write instead."""


class InvalidJobTypeError(InvalidJobError, TypeError):
    """An argument or an option has the wrong type."""


class DuplicateJobHandlerError(InvalidJobError):
    """Two ``@job`` handlers of one class have the same name."""

    def __init__(self, job_name: str, worker_class: str, first: str, second: str):
        super().__init__(
            f"{worker_class} has two @job handlers named '{job_name}': {first}() and {second}(); "
            "rename one, or override the first by giving both methods the same name"
        )
        self.job_name = job_name


class MixinOrderError(InvalidJobTypeError):
    """A worker class names the mixin before a base that extends what the mixin replaces.

    The base's own method would never be called: name the mixin last.

    Parameters:
        worker_class: The name of the class.
        hidden: What the mixin would hide, e.g. ``"UIWorker.cancel_job_group"``.
    """

    def __init__(
        self, worker_class: str, *, hidden: str, bases: Iterable[str], write: Iterable[str]
    ):
        super().__init__(
            f"in class {worker_class}({', '.join(bases)}) the mixin hides {hidden}; "
            f"write class {worker_class}({', '.join(write)})"
        )
        self.worker_class = worker_class
        self.hidden = hidden


class DuplicateWorkerError(ValueError):
    """A worker was added whose name another worker of the runner has.

    Parameters:
        worker: The name.
    """

    def __init__(self, worker: str):
        super().__init__(
            f"there is another worker named '{worker}'; give each worker of a runner a name of its "
            "own: the runner would never start the second, and its jobs would go to the first"
        )
        self.worker = worker


class WorkerNotAddedError(RuntimeError):
    """A worker that no runner has taken asked for a job.

    Parameters:
        worker: The worker's name.
    """

    def __init__(self, worker: str):
        super().__init__(
            f"worker '{worker}' has not been added to a runner and cannot ask for jobs; call "
            "'await runner.add_workers(...)' with it first, and give it a name that no other "
            "worker of the runner has: the runner skips the second of a name"
        )
        self.worker = worker


class UnknownJobError(RuntimeError):
    """A job was answered, updated or asked about that is not open here."""

    def __init__(self, worker: str, job_id: str, *, ended: bool, open_jobs: Iterable[str]):
        state = "has already ended" if ended else "is not known"
        super().__init__(f"worker '{worker}': job '{job_id}' {state}; open: {_listed(open_jobs)}")
        self.worker = worker
        self.job_id = job_id
        self.ended = ended


class JobNotEndedError(RuntimeError):
    """A job's response was read before the job had ended.

    Parameters:
        job_id: The job's id.
        worker: Name of the worker that was asked.
    """

    def __init__(self, job_id: str, worker: str):
        super().__init__(
            f"job '{job_id}' at worker '{worker}' has not ended, so there is no response yet; read "
            "'response' after the 'async with' block, which waits for the end. 'outcome' may be "
            "read at any time: it is None until the job has ended"
        )
        self.job_id = job_id
        self.worker = worker


class MessageTypeError(InvalidJobTypeError):
    """A message holds something that the bus cannot carry to another process.

    Parameters:
        type_name: The type of what it holds.
        path: Where in the message it is, e.g. ``"payload.when"``.
        wanted: The type that the field declares, where it is one that the bus carries.
    """

    def __init__(self, type_name: str, path: str, *, wanted: str | None = None):
        if wanted is None:
            cure = (
                "which the bus does not carry; send dicts, lists, strings, numbers, booleans, "
                "bytes and None, or give the bus the type: types=[...]"
            )
        else:
            cure = f"which other processes would refuse; send what it declares: {wanted}"
        super().__init__(f"{path} is a {type_name}, {cure}")
        self.wanted = wanted
        self.type_name = type_name
        self.path = path


class MessageTooLargeError(InvalidJobError):
    """A message is larger than the bus carries.

    Parameters:
        message: What was to be sent, as text.
        size: Its size in bytes, encoded.
        limit: The most that the bus carries, in bytes.
    """

    def __init__(self, message: str, *, size: int, limit: int):
        super().__init__(
            f"{message} takes {size:,} bytes, the bus carries {limit:,}; store the data elsewhere "
            "and send where it is, or raise max_message_bytes on every bus of the channel"
        )
        self.message = message
        self.size = size
        self.limit = limit


class UnreadableMessageError(ValueError):
    """What came over the wire is not a message this process knows, or not one it trusts."""

    def __init__(self, why: str):
        # What a stranger sends is in it, and it is logged.
        super().__init__(cut(why))


class RedisStartError(RuntimeError):
    """A Redis server of this process's own could not be started.

    Parameters:
        output: What the server printed, if it ran at all.
    """

    def __init__(self, why: str, *, output: str = ""):
        super().__init__(f"{why}\n{output}".rstrip())
        self.output = output


class BusFullError(RuntimeError):
    """The server is away, and as many messages wait for it as the bus keeps.

    Parameters:
        limit: How many that is.
    """

    def __init__(self, limit: int):
        super().__init__(
            f"{limit:,} messages wait for the Redis server; see why it is away, or raise "
            "outbox_limit"
        )
        self.limit = limit


class BusUnavailableError(RuntimeError):
    """The server could not be reached when the bus started.

    Parameters:
        cause: What went wrong last.
    """

    def __init__(self, cause: str, *, seconds: float):
        super().__init__(
            f"the Redis server could not be reached within {seconds:g} s: {cause}; check the URL, "
            "the password and that the server runs"
        )
        self.cause = cause


class RedisModeError(RuntimeError):
    """The server is not one that the bus can use: a node of a Redis Cluster, or a Sentinel.

    Parameters:
        mode: What the server says that it is: ``"cluster"`` or ``"sentinel"``.
    """

    def __init__(self, mode: str):
        what = {"cluster": "a node of a Redis Cluster", "sentinel": "a Redis Sentinel"}
        super().__init__(
            f"the server is {what.get(mode, f'in {mode} mode')}, which the bus does not support; "
            "give the address of a server that runs on its own, or a redis.asyncio.Redis that "
            "finds the primary through Sentinel"
        )
        self.mode = mode
