"""Every error that this package raises.

Errors of jobs derive from Pipecat's own ``JobError`` and ``JobGroupError``, so code that catches
those goes on working. Bad input is a ``ValueError`` (and a ``TypeError`` when the type is wrong); a
call about a job that is not open is a ``RuntimeError``, as it is in Pipecat.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.pipeline.job_context import JobGroupError as PipecatJobGroupError

from pipecat_jobs._protocol.text import cut, shorten
from pipecat_jobs.outcomes import CancelReason, JobOutcome, JobRefusal, OutcomeStatus
from pipecat_jobs.outcomes import JobToolError as JobToolError


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


class JobError(PipecatJobError):
    """A job did not complete.

    It derives from Pipecat's :class:`~pipecat.pipeline.job_context.JobError`. The narrower errors
    below say how the job ended; catch this one to handle all of them.

    Parameters:
        job_id: The job's id.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        outcomes: The outcome of each worker of the job, by the worker's name. It includes the
            workers that completed.

    Example::

        try:
            found = await self.job("researcher", name="research", timeout=30)
        except JobError as error:
            outcome = error.outcomes["researcher"]
            print(f"job {error.job_id} is {outcome.status}: {outcome.cause}")
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
        """The outcomes of the workers that did not complete, by the worker's name."""
        return {name: outcome for name, outcome in self.outcomes.items() if not outcome.completed}


class JobGroupError(JobError, PipecatJobGroupError):
    """A job group did not complete; ``outcomes`` has the response or the cause of each worker.

    It derives from Pipecat's :class:`~pipecat.pipeline.job_context.JobGroupError`.

    Example::

        try:
            found = await self.job_group("wiki", "news", name="research", timeout=5)
        except JobGroupError as error:
            done = [outcome for outcome in error.outcomes.values() if outcome.completed]
            found = {outcome.worker: outcome.response for outcome in done}
            for name, outcome in error.failures.items():
                print(f"{name} did not complete: {outcome.cause}")
    """


class JobTimeoutError(JobGroupError, TimeoutError):
    """The deadline passed before every worker had responded. It is a ``TimeoutError`` as well.

    Parameters:
        loop_blocked: How long the requester's event loop was blocked when the deadline passed, at
            the least, in seconds; 0.0 when the loop ran. Code such as ``time.sleep()`` blocks it.
        inherited: True if the deadline was not the job's own timeout but the deadline of the job,
            or of the tool's call, whose handler requested it.

    Example::

        try:
            await self.job_group("wiki", "news", name="research", timeout=5)
        except JobTimeoutError as error:
            if error.loop_blocked:
                print(f"the event loop was blocked for {error.loop_blocked:.1f} s")
            print("too late:", ", ".join(error.failures))
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        job_name: str | None = None,
        outcomes: Mapping[str, JobOutcome] | None = None,
        loop_blocked: float = 0.0,
        inherited: bool = False,
    ):
        super().__init__(message, job_id=job_id, job_name=job_name, outcomes=outcomes)
        self.loop_blocked = loop_blocked
        self.inherited = inherited


class WorkerNotReadyError(JobTimeoutError):
    """The request was not sent: a worker was not ready in time, or the bus cannot start.

    In time means before the deadline, and within ``ready_within`` if that was given. If the bus
    cannot start, ``__cause__`` is the exception that it raised.

    Example::

        try:
            await self.job("an unknown worker", timeout=0.05)
        except WorkerNotReadyError as error:
            print(error.__cause__ or error)  # the second names the workers that are known
    """


class JobCancelledError(JobGroupError):
    """The job was cancelled: by ``cancel_job_group()``, or because a worker stopped.

    Example::

        try:
            async with self.job("researcher", name="research") as j:
                await self.cancel_job_group(j.job_id, reason="the user hung up")
        except JobCancelledError as error:
            for outcome in error.failures.values():
                print(outcome.cancel_reason, outcome.reason)  # for code, and for people
    """


class WorkerLostError(JobGroupError):
    """A worker ended, or its process or its connection was lost, before it had responded.

    Example::

        try:
            async with self.job("researcher", name="research"):
                await self.worker_lost("researcher", reason="its machine is down")
        except WorkerLostError as error:
            print(error.outcomes["researcher"].reason)
    """


class NoJobHandlerError(JobGroupError):
    """The worker has no handler for a job of this name. No handler has begun.

    Example::

        try:
            await self.job("researcher", name="reserch")
        except NoJobHandlerError as error:
            print(error)  # it lists the names that the worker has handlers for
    """


class JobRefusedError(JobGroupError):
    """The worker refused the job; the message says why. No handler has begun.

    Example::

        try:
            await self.job("researcher", name="research")
        except JobRefusedError as error:
            if error.outcomes["researcher"].refusal is JobRefusal.INACTIVE:
                print("the researcher takes no jobs while it is inactive")
    """


class InvalidJobResponseError(JobGroupError):
    """A worker completed a job with a response that does not fit the type of the request.

    The job has completed: its outcome says so, and has the response.

    Parameters:
        worker: Name of the worker.
        problems: What does not fit, one text for each field, without the values.

    Example::

        class Library(BaseWorker):
            @job(name="research")
            async def find_shelf(self, title: str) -> int: ...


        try:
            await self.job("researcher", Library.find_shelf.request(title="Emma"))
        except InvalidJobResponseError as error:
            print(error.worker, *error.problems)
    """

    def __init__(
        self,
        worker: str,
        problems: Sequence[str],
        *,
        job_id: str,
        job_name: str | None = None,
        outcomes: Mapping[str, JobOutcome] | None = None,
    ):
        super().__init__(
            f"worker '{worker}' completed job '{job_name}' with a response that does not fit the "
            f"handler of the request: {'; '.join(problems)}; the two may have different versions",
            job_id=job_id,
            job_name=job_name,
            outcomes=outcomes,
        )
        self.worker = worker
        self.problems = tuple(problems)


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
    inherited: bool,
    need: Literal["all", "first"] | int,
    unready: Sequence[str],
    not_ready_within: float | None,
    known_workers: Iterable[str],
    loop_blocked: float,
    sharing_loop: Sequence[str],
    bus_problem: str | None,
    bus_failure: Exception | None,
) -> JobError:
    """Build the narrowest error for a job that did not complete; it names worker, job and cause.

    Args:
        job_id: The job's id.
        job_name: The name of the job, or None.
        outcomes: The outcome of each worker.
        first: The outcome that ended the group, or None when every worker was cancelled at once.
        single: True for ``job()``, which raises :class:`JobError`; False for ``job_group()``, which
            raises :class:`JobGroupError`.
        timeout: The seconds that the job had, its own timeout or less.
        inherited: See :class:`JobTimeoutError`.
        need: How many workers had to complete.
        unready: Workers to which no request was sent.
        not_ready_within: The seconds of ``ready_within``, if that has passed for a worker.
        known_workers: Workers that the requester's registry knows.
        loop_blocked: See :class:`JobTimeoutError`.
        sharing_loop: The late workers that run in the requester's event loop.
        bus_problem: Why the bus can send nothing now, or None.
        bus_failure: The exception with which the bus did not start, or None.
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
        timed_out = [name for name, o in failures.items() if o.status is OutcomeStatus.TIMED_OUT]
        owing = [name for name in timed_out if name not in unready]
        left = ", all that was left of its own requester's deadline" if inherited else ""
        if owing:
            late: type[JobTimeoutError] = JobTimeoutError
            within = f"within {timeout:g} s{left}"
            message = f"timeout: {job} got no response from {_listed(owing)} {within}"
        else:
            late = WorkerNotReadyError
            if not_ready_within is not None:
                within, inherited = f"within {not_ready_within:g} s (ready_within)", False
            else:
                within = f"within {timeout:g} s{left}"
            message = (
                f"timeout: {job} was not sent, {_listed(timed_out)} not ready {within}; "
                f"known workers: {_listed(known_workers)}"
            )
            message += f"; {bus_problem}" if bus_problem else ""
        if loop_blocked:
            message += _blocked(loop_blocked, sharing_loop)
        return late(
            message,
            job_id=job_id,
            job_name=job_name,
            outcomes=outcomes,
            loop_blocked=loop_blocked,
            inherited=inherited,
        )
    if status is OutcomeStatus.CANCELLED:
        error = JobCancelledError
        message = f"{job} at {_listed(failures)} cancelled"
        message += f": {first.reason}" if first.reason else ""
    elif status is OutcomeStatus.LOST:
        error = WorkerLostError
        message = f"{worker} was lost before it responded to {job}: {first.reason}"
    else:
        verb = "failed" if status is OutcomeStatus.FAILED else "errored"
        message = f"{worker} {verb} at {job}: {first.cause}"
        if first.refusal is not None:
            unknown = first.refusal is JobRefusal.NO_HANDLER
            error = NoJobHandlerError if unknown else JobRefusedError
            why = first.error.message if first.error is not None else first.refusal
            message = f"{worker} did not run {job}: {why}"
    others = [o for o in failures.values() if o.cancel_reason is not CancelReason.GROUP_FAILED]
    if need != "all" and len(others) > 1:
        causes = "; ".join(f"'{o.worker}': {o.cause}" for o in others if o is not first)
        message += f"; before that {causes}"
    return error(message, job_id=job_id, job_name=job_name, outcomes=outcomes)


class LLMTurnError(RuntimeError):
    """The LLM gave no complete answer: its provider failed or cut it off, or it was empty.

    Parameters:
        worker: Name of the worker that has the LLM.
        cause: The message or the reason of the provider, where it gave one. If the provider could
            not be reached, its address and why.
        text: The part of the answer that the LLM had generated until then; may be empty.
        max_runs: The limit that ended the turn, if the LLM called functions in the last run that
            ``llm_turn(max_runs=)`` allows; otherwise None.

    Example::

        class Debater(LLMContextWorker):
            @job(name="argue")
            async def argue(self, message):
                try:
                    text = await self.llm_turn(f"Topic: {message.payload['topic']}")
                except LLMTurnError as error:
                    return {"text": error.text, "complete": False, "why": error.cause}
                return {"text": text, "complete": True}
    """

    def __init__(self, worker: str, cause: str, *, text: str = "", max_runs: int | None = None):
        super().__init__(f"the LLM turn of worker '{worker}' gave no answer: {cause}")
        self.worker = worker
        self.cause = cause
        self.text = text
        self.max_runs = max_runs


class LLMTurnInterruptedError(LLMTurnError):
    """The turn was interrupted: the user spoke to an active worker, or the worker ended.

    A job whose handler does not catch it ends as cancelled.

    Example::

        class Debater(LLMContextWorker):
            @job(name="argue")
            async def argue(self, message):
                try:
                    return {"text": await self.llm_turn("Argue.")}
                except LLMTurnInterruptedError as error:
                    return {"text": error.text, "interrupted": True}
    """


class LLMTurnTimeoutError(LLMTurnError, TimeoutError):
    """The timeout of ``llm_turn()`` passed first. It is a ``TimeoutError`` as well.

    Example::

        class Debater(LLMContextWorker):
            @job(name="argue")
            async def argue(self, message):
                try:
                    return {"text": await self.llm_turn("Argue.", timeout=10)}
                except LLMTurnTimeoutError:
                    return {"text": "I have to think about that."}
    """


class InvalidJobError(ValueError):
    """An argument or an option cannot be used; the message says what to write instead.

    Example::

        try:
            self.job_group("wiki", "wiki", name="research")
        except InvalidJobError as error:
            print(error)  # worker 'wiki' is named twice; name each worker once, ...
    """


class InvalidJobTypeError(InvalidJobError, TypeError):
    """An argument or an option has the wrong type. It is a ``TypeError`` as well.

    Example::

        try:
            self.job("researcher", timeout="30")
        except InvalidJobTypeError as error:
            print(error)
    """


class DuplicateJobHandlerError(InvalidJobError):
    """Two ``@job`` handlers of one class have the same name.

    Parameters:
        job_name: The name that both have.

    Example::

        try:

            class Researcher(BaseWorker):
                @job(name="research")
                async def in_books(self, message): ...

                @job(name="research")
                async def in_papers(self, message): ...

        except DuplicateJobHandlerError as error:
            print(error.job_name)
    """

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
    """A worker was added under a name that another worker of the runner has.

    Parameters:
        worker: The name that both have.

    Example::

        try:
            await self.add_workers(BaseWorker("wiki"))
        except DuplicateWorkerError as error:
            await self.add_workers(BaseWorker(f"{error.worker}_2"))
    """

    def __init__(self, worker: str):
        super().__init__(
            f"there is another worker named '{worker}'; give each worker of a runner a name of its "
            "own: the runner would never start the second, and its jobs would go to the first"
        )
        self.worker = worker


class WorkerNotAddedError(RuntimeError):
    """A worker requested a job, but was not added to a runner.

    Parameters:
        worker: Name of the worker that requested the job.

    Example::

        host = BaseWorker("host_2")
        try:
            await host.job("researcher", name="research")
        except WorkerNotAddedError as error:
            print(f"call runner.add_workers() with {error.worker} first")
    """

    def __init__(self, worker: str):
        super().__init__(
            f"worker '{worker}' has not been added to a runner and cannot request jobs; call "
            "'await runner.add_workers(...)' with it first, and give it a name that no other "
            "worker of the runner has: the runner skips the second worker of a name"
        )
        self.worker = worker


class UnknownJobError(RuntimeError):
    """The worker has no open job of this id.

    Parameters:
        worker: Name of the worker.
        job_id: The id that was given.
        ended: True if the worker has had a job of this id, which has ended; False if the worker
            does not know the id.

    Example::

        try:
            await self.send_job_response("an old id", {"text": "late"})
        except UnknownJobError as error:
            print("too late" if error.ended else f"no job has the id {error.job_id}")
    """

    def __init__(self, worker: str, job_id: str, *, ended: bool, open_jobs: Iterable[str]):
        state = "has already ended" if ended else "is not known"
        super().__init__(f"worker '{worker}': job '{job_id}' {state}; open: {_listed(open_jobs)}")
        self.worker = worker
        self.job_id = job_id
        self.ended = ended


class JobQuestionError(RuntimeError):
    """A question that a handler asked with ``ask_requester()`` has no answer.

    Parameters:
        text: The question.
        reason: Why there is none: it was refused, the time has passed, no answer has fitted, or the
            requester cannot answer.

    Example::

        class Garage(BaseWorker):
            @job(name="inspect")
            async def inspect(self, message):
                try:
                    brakes = await self.ask_requester("The brakes too?", bool, timeout=30)
                except JobQuestionError as error:
                    print(f"no answer to '{error.text}': {error.reason}")
                    brakes = False
                return {"brakes": brakes}
    """

    def __init__(self, text: str, reason: str):
        super().__init__(f"the question {shorten(text)} has no answer: {reason}")
        self.text = text
        self.reason = reason


class JobNotEndedError(RuntimeError):
    """A job's response was read before the job had ended.

    Parameters:
        job_id: The job's id.
        worker: Name of the worker of the job.

    Example::

        async with self.job("researcher", name="research") as j:
            try:
                early = j.response
            except JobNotEndedError:
                early = None

        print(early or j.response)
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
    """A message has a value that the bus cannot carry to another process.

    Parameters:
        type_name: The name of the value's type.
        path: The place of the value in the message, e.g. ``"payload.when"``.
        wanted: The type that the field declares, if the bus carries that type; None otherwise.

    Example::

        try:
            await self.job("researcher", name="research", payload={"when": 7})
        except MessageTypeError as error:
            print(f"{error.path} is a {error.type_name}")
    """

    def __init__(self, type_name: str, path: str, *, wanted: str | None = None):
        if wanted is None:
            cure = (
                "which the bus does not carry; send dicts, lists, strings, numbers, booleans, "
                "bytes and None, or give the bus the type: types=[...]"
            )
        else:
            cure = f"which other processes would refuse; send the declared type: {wanted}"
        super().__init__(f"{path} is a {type_name}, {cure}")
        self.wanted = wanted
        self.type_name = type_name
        self.path = path


class MessageTooLargeError(InvalidJobError):
    """A message is larger than the bus carries.

    Parameters:
        message: The message, as a short text.
        size: The size of the encoded message, in bytes.
        limit: The largest size that the bus carries, in bytes.

    Example::

        try:
            await self.job("researcher", name="research", payload={"text": "..."})
        except MessageTooLargeError as error:
            print(f"{error.size - error.limit:,} bytes too large")
    """

    def __init__(self, message: str, *, size: int, limit: int):
        super().__init__(
            f"{message} takes {size:,} bytes, the bus carries {limit:,}; store the data elsewhere "
            "and send its address, or raise max_message_bytes on every bus of the channel"
        )
        self.message = message
        self.size = size
        self.limit = limit


class UnreadableMessageError(ValueError):
    """The bytes from the server are not a message that this process knows, or not a trusted one."""

    def __init__(self, why: str):
        # The text has parts of the message, which a stranger may have sent, and it is logged.
        super().__init__(cut(why))


class RedisStartError(RuntimeError):
    """A private Redis server could not be started.

    Parameters:
        output: The text that the server printed; empty if it did not run.

    Example::

        from pipecat_jobs.bus.redis import EmbeddedRedis

        try:
            async with EmbeddedRedis(executable="/no/such/server") as server:
                print(server.url)
        except RedisStartError as error:
            print(error)
    """

    def __init__(self, why: str, *, output: str = ""):
        super().__init__(f"{why}\n{output}".rstrip())
        self.output = output


class BusFullError(RuntimeError):
    """The server is away, and the bus keeps as many messages for it as it may.

    Parameters:
        limit: The number of messages that the bus keeps: its ``outbox_limit``.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                for line in range(1000):
                    try:
                        await self.send_job_update(message.job_id, {"line": line})
                    except BusFullError as error:
                        print(f"{error.limit:,} messages wait; skipping an update")
                return {}
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
        cause: Why the last attempt failed.

    Example::

        from pipecat_jobs.bus.redis import RedisStreamsBus

        bus = RedisStreamsBus("redis://127.0.0.1:1", channel="bots", start_timeout=0.1)
        try:
            await WorkerRunner(bus=bus).run()
        except BusUnavailableError as error:
            print(error.cause)
    """

    def __init__(self, cause: str, *, seconds: float):
        super().__init__(
            f"the Redis server could not be reached within {seconds:g} s: {cause}; check the URL, "
            "the password and that the server runs"
        )
        self.cause = cause


class RedisModeError(RuntimeError):
    """The bus cannot use a server in this mode: a node of a Redis Cluster, or a Sentinel.

    Parameters:
        mode: The mode that the server reports: ``"cluster"`` or ``"sentinel"``.

    Example::

        from pipecat_jobs.bus.redis import RedisStreamsBus

        async def run(url):
            try:
                await WorkerRunner(bus=RedisStreamsBus(url, channel="bots")).run()
            except RedisModeError as error:
                print(f"the server runs in {error.mode} mode")
    """

    def __init__(self, mode: str):
        what = {"cluster": "a node of a Redis Cluster", "sentinel": "a Redis Sentinel"}
        super().__init__(
            f"the server is {what.get(mode, f'in {mode} mode')}, which the bus does not support; "
            "give the address of a server that runs on its own, or a redis.asyncio.Redis that "
            "finds the primary through Sentinel"
        )
        self.mode = mode
