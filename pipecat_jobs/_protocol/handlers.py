"""``@job``: the methods of a worker that handle jobs, and their concurrency limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeVar

from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._protocol.checks import check_count, check_flag, check_text
from pipecat_jobs._protocol.keys import KeyRule, OnBusy, check_key
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import DuplicateJobHandlerError, InvalidJobError, InvalidJobTypeError

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A method with ``@job``, and the arguments of its decorator.

    Parameters:
        attribute: The method's name on its class.
        job_name: The name of the jobs that it handles.
        key: Which of its jobs run one at a time; None if its jobs have no key.
    """

    attribute: str
    job_name: str
    sequential: bool = False
    max_concurrency: int | None = None
    run_once: bool = False
    key: KeyRule | None = None


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """The limit of a worker's jobs of one name.

    Parameters:
        size: The number of slots.
        until_response: Whether a job keeps its slot until its response; otherwise it keeps it until
            its handler has returned.
    """

    size: int
    until_response: bool = True


def job(
    *,
    name: str,
    sequential: bool = False,
    max_concurrency: int | None = None,
    run_once: bool = False,
    key: str | tuple[str, ...] | None = None,
    on_busy: OnBusy | None = None,
) -> Callable[[Handler], Handler]:
    """Mark a worker's method as the handler of a job.

    The method gets the ``BusJobRequestMessage``. Its result decides the response:

    - a dict is the response, and the job ends as completed;
    - None is not a response: the method has called ``send_job_response()``, or other code of the
      worker calls it later, e.g. the event handler of an LLM turn;
    - an async generator streams each dict that it yields; the job completes when it ends;
    - an exception ends the job as an error, with the exception's type, message and traceback.

    It replaces ``pipecat.pipeline.job_decorator.job``; handlers with that decorator are found too.

    Args:
        name: The job's name, which the requester gives as ``name=``.
        sequential: Whether the handler's calls run one at a time, in order of arrival. The next one
            begins when the handler returns, with or without a response. The time that a request
            waits counts towards the requester's timeout.
        max_concurrency: The number of jobs of this handler that may be open at once; further jobs
            wait in order of arrival. Unlike with ``sequential``, a job keeps its slot until its
            response, also when the handler has returned None. Not together with ``sequential``.
        run_once: Whether a job is lost with the process that runs it; for a payment, for example.
            When False, a bus that spans processes begins the job again in another process that
            has the worker.
        key: A field of the payload, or a tuple of fields, whose value names a thing: only one job
            of a thing runs at a time at this worker, and over all processes of a
            ``RedisStreamsBus`` that have the worker. A request without the field, or whose value
            is not a str, a finite number or a bool, is refused. Not together with ``sequential``.
        on_busy: What a job does that comes while another one of the same key is open. "queue", the
            default, waits until it has ended, in order of arrival. "refuse" ends as refused
            (``JobRefusal.BUSY``), and ``JobOutcome.held_by`` is the id of the open job. "replace"
            cancels it (``CancelReason.REPLACED``) and begins once it has cleaned up. "join" gets
            its updates from then on and its response; not for a handler that streams.

    Returns:
        The decorator, which returns the method unchanged.

    Raises:
        InvalidJobTypeError: If an argument has the wrong type, or the method is not ``async def``.
        InvalidJobError: If ``name`` is empty, ``max_concurrency`` is below one, an option is given
            together with one that excludes it, or ``on_busy`` is unknown or without ``key``.

    Example::

        class Researcher(BaseWorker):
            @job(name="research", max_concurrency=2)
            async def research(self, message):
                return {"answer": f"all about {message.payload['topic']}"}

            @job(name="count")
            async def count(self, message):
                for number in range(3):
                    yield {"number": number}

            @job(name="steer", key="ship_id", on_busy="replace")
            async def steer(self, message):
                return {"arrived": message.payload["ship_id"]}
    """
    where = f"@job(name={shorten(name)}):"
    check_text(f"{where} name", name, "the name that requesters will use, as a str")
    check_flag(f"{where} sequential", sequential)
    check_flag(f"{where} run_once", run_once)
    if max_concurrency is not None:
        check_count(f"{where} max_concurrency", max_concurrency, "one or more jobs, or None")
        if sequential:
            raise InvalidJobError(
                f"{where} sequential=True runs one at a time, max_concurrency={max_concurrency} "
                "allows more; give one of them"
            )

    rule = check_key(where, key, on_busy)
    if rule is not None and sequential:
        raise InvalidJobError(
            f"{where} sequential=True runs all jobs one at a time, key={key!r} one for each key; "
            "give one of them, or max_concurrency=1 with the key"
        )

    def mark(method: Handler) -> Handler:
        if not (iscoroutinefunction(method) or isasyncgenfunction(method)):
            raise InvalidJobTypeError(f"{where} the method is not 'async def'; make it so")
        if isasyncgenfunction(method) and rule is not None and rule.on_busy == "join":
            raise InvalidJobError(
                f"{where} the method streams, and a job that joins would miss the beginning; "
                "return a dict, or give another on_busy"
            )
        # The first three names are Pipecat's, so that a plain Pipecat worker finds the handler too.
        vars(method).update(
            is_job_handler=True,
            job_name=name,
            job_sequential=sequential,
            job_max_concurrency=max_concurrency,
            job_run_once=run_once,
            job_key=rule,
        )
        return method

    return mark


def collect_handlers(worker_class: type) -> Mapping[str, HandlerSpec]:
    """Find the handlers of a class and its bases, with Pipecat's ``@job`` or ours, by job name.

    A method of the same Python name in a subclass replaces the one it overrides.
    """
    handlers: dict[str, HandlerSpec] = {}
    seen: set[str] = set()
    for base in worker_class.__mro__:
        for attribute, method in vars(base).items():
            if attribute in seen:
                continue
            seen.add(attribute)
            if not (callable(method) and getattr(method, "is_job_handler", False)):
                continue
            marks = vars(method)
            spec = HandlerSpec(
                attribute,
                marks["job_name"],
                bool(marks.get("job_sequential")),
                marks.get("job_max_concurrency"),
                bool(marks.get("job_run_once")),
                marks.get("job_key"),
            )
            if (other := handlers.get(spec.job_name)) is not None:
                raise DuplicateJobHandlerError(
                    spec.job_name, worker_class.__qualname__, other.attribute, attribute
                )
            handlers[spec.job_name] = spec
    return handlers


def find_limits(worker: BaseWorker) -> dict[str | None, ConcurrencyLimit]:
    """Find the limits of a worker, ours or a plain one, by job name.

    The limit of ``on_job_request`` is under None. A job name without a limit is left out.
    """
    limits: dict[str | None, ConcurrencyLimit] = {}
    requests: object = getattr(worker, "job_request_concurrency", None)
    if requests == "auto":
        requests = 1 if isinstance(worker, LLMContextWorker) else None
    if requests is not None:
        name = f"{type(worker).__name__}.job_request_concurrency"
        limits[None] = ConcurrencyLimit(check_count(name, requests, "a number of jobs, or None"))
    for name, spec in collect_handlers(type(worker)).items():
        if spec.sequential:
            limits[name] = ConcurrencyLimit(1, until_response=False)
        elif spec.max_concurrency is not None:
            limits[name] = ConcurrencyLimit(spec.max_concurrency)
    return limits
