"""``@job``: which method of a worker does which job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeVar

from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._protocol.checks import check_count, check_flag, check_text
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import DuplicateJobHandlerError, InvalidJobError, InvalidJobTypeError

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """What ``@job`` says of one method.

    Parameters:
        attribute: The method's name on its class.
        job_name: The job it does.
        sequential: Whether its calls run one at a time.
        max_concurrency: How many of its jobs may be open at once, or None for any number.
        run_once: Whether a job is lost with its process, rather than begun again in another.
    """

    attribute: str
    job_name: str
    sequential: bool = False
    max_concurrency: int | None = None
    run_once: bool = False


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """How many jobs of one kind a worker has at once.

    Parameters:
        size: How many.
        until_answered: Whether a job counts until it has been answered; otherwise until its
            handler has returned.
    """

    size: int
    until_answered: bool = True


def job(
    *,
    name: str,
    sequential: bool = False,
    max_concurrency: int | None = None,
    run_once: bool = False,
) -> Callable[[Handler], Handler]:
    """Mark a worker's method as the handler of a job.

    The method gets the ``BusJobRequestMessage``. What it returns is the answer:

    - a dict answers the job with it;
    - None answers nothing: the method has called ``send_job_response()``, or something will
      later, as an LLM turn's event handler does;
    - an async generator streams every dict it yields, and its end is the end of the job;
    - an exception answers ERROR with the exception's type, message and traceback.

    A drop-in for ``pipecat.pipeline.job_decorator.job``, whose handlers are found as well.

    Args:
        name: The job's name, which the requester gives as ``name=``.
        sequential: Run calls of this handler one at a time, in order of arrival. The next starts
            when the handler returns, answered or not. A request that waits spends its caller's
            timeout.
        max_concurrency: Keep at most this many of this handler's jobs open; the others wait in
            order of arrival. Unlike with ``sequential``, a job counts until it has been answered,
            so a handler that answers later keeps its place. Not together with ``sequential``.
        run_once: Never begin a job of this handler again after its process was lost: a payment,
            say. On a bus that spans processes, such a job ends as lost; without this, another
            process that hosts the worker takes it up.

    Returns:
        The decorator, which gives the method back unchanged.

    Raises:
        InvalidJobTypeError: If an argument has the wrong type, or the method is not ``async def``.
        InvalidJobError: If ``name`` is empty, ``max_concurrency`` is below one, or is given
            together with ``sequential``.

    Example::

        class Researcher(BaseWorker):
            @job(name="research", max_concurrency=2)
            async def research(self, message):
                return {"answer": f"all about {message.payload['topic']}"}

            @job(name="count")
            async def count(self, message):
                for number in range(3):
                    yield {"number": number}
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

    def mark(method: Handler) -> Handler:
        if not (iscoroutinefunction(method) or isasyncgenfunction(method)):
            raise InvalidJobTypeError(f"{where} the method is not 'async def'; make it so")
        # Pipecat's names for the first three, so that a plain Pipecat worker finds it too.
        vars(method).update(
            is_job_handler=True,
            job_name=name,
            job_sequential=sequential,
            job_max_concurrency=max_concurrency,
            job_run_once=run_once,
        )
        return method

    return mark


def collect_handlers(worker_class: type) -> Mapping[str, HandlerSpec]:
    """Find the ``@job`` handlers of a class, Pipecat's and ours.

    A method of the same Python name in a subclass replaces the one it overrides.

    Args:
        worker_class: The class to look through, bases included.

    Returns:
        The handlers by job name.

    Raises:
        DuplicateJobHandlerError: If two methods claim one job name.
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
            )
            if (other := handlers.get(spec.job_name)) is not None:
                raise DuplicateJobHandlerError(
                    spec.job_name, worker_class.__qualname__, other.attribute, attribute
                )
            handlers[spec.job_name] = spec
    return handlers


def find_limits(worker: BaseWorker) -> dict[str | None, ConcurrencyLimit]:
    """Find how many jobs a worker has at once, whichever class its handlers are marked by.

    Args:
        worker: A worker of ours or a plain one.

    Returns:
        The limits by job name, that of ``on_job_request`` under None. What has none is left out.

    Raises:
        InvalidJobError: If ``job_request_concurrency`` of the worker's class cannot be used.
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
            limits[name] = ConcurrencyLimit(1, until_answered=False)
        elif spec.max_concurrency is not None:
            limits[name] = ConcurrencyLimit(spec.max_concurrency)
    return limits
