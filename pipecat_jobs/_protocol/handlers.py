"""``@job``: the methods of a worker that handle jobs, and their concurrency limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import currentframe, isasyncgenfunction, iscoroutinefunction
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._protocol.checks import check_count, check_flag, check_text
from pipecat_jobs._protocol.keys import KeyRule, OnBusy, check_key
from pipecat_jobs._protocol.requests import JobDecorator, JobHandler
from pipecat_jobs._protocol.signatures import HandlerSignature, MessageRequests, read_handler
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import DuplicateJobHandlerError, InvalidJobError, InvalidJobTypeError

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A method with ``@job``, and the arguments of its decorator.

    Parameters:
        attribute: The method's name on its class.
        job_name: The name of the jobs that it handles.
        key: Which of its jobs run one at a time; None if its jobs have no key.
        signature: The fields that it takes; None if it takes the message alone.
    """

    attribute: str
    job_name: str
    sequential: bool = False
    max_concurrency: int | None = None
    run_once: bool = False
    key: KeyRule | None = None
    signature: HandlerSignature | None = None


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


@overload
def job(method: Callable[Concatenate[Any, P], Result], /) -> JobHandler[P, Result]: ...


@overload
def job(
    *,
    name: str | None = None,
    sequential: bool = False,
    max_concurrency: int | None = None,
    run_once: bool = False,
    key: str | tuple[str, ...] | None = None,
    on_busy: OnBusy | None = None,
) -> JobDecorator: ...


def job(
    method: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    sequential: bool = False,
    max_concurrency: int | None = None,
    run_once: bool = False,
    key: str | tuple[str, ...] | None = None,
    on_busy: OnBusy | None = None,
) -> Any:
    """Mark a worker's method as the handler of a job: ``@job``, or ``@job(...)`` with options.

    The method's parameters are the fields of the payload. They are validated by their annotations,
    as `pydantic <https://docs.pydantic.dev/latest/concepts/types/>`_ does, before the method
    begins; a payload that does not fit is refused. The method's return annotation is the type of
    the response. ``Worker.method.request(...)`` makes a request for ``job()``, from which type
    checkers know the arguments and the response. See ``docs/how-to/typed.md``.

    A method whose first parameter is annotated as ``BusJobRequestMessage`` gets the message too.
    One that takes the message alone gets a payload of any shape, and its result decides the
    response:

    - a dict is the response, and the job ends as completed;
    - None is not a response: the method has called ``send_job_response()``, or other code of the
      worker calls it later, e.g. the event handler of an LLM turn;
    - an async generator streams each dict that it yields; the job completes when it ends;
    - an exception ends the job as an error, with the exception's type, message and traceback.

    It replaces ``pipecat.pipeline.job_decorator.job``; handlers with that decorator are found too.

    Args:
        method: The method, where ``@job`` is used without parentheses.
        name: The job's name, which the requester gives as ``name=``; the method's name by default.
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
            its updates from then on and its response; not for a handler that streams. "steer" tells
            the open job its payload, as ``steer()`` does: it completes with ``{"steered": id}``,
            is refused if the open job refuses that, and begins itself if the open job ends first.

    Returns:
        The method unchanged, with ``request()`` added; the decorator where options were given.

    Raises:
        InvalidJobTypeError: If an argument has the wrong type, or the method is not ``async def``.
        InvalidJobError: If ``name`` is empty, ``max_concurrency`` is below one, an option is given
            together with one that excludes it, ``on_busy`` is unknown or without ``key``, or a
            parameter cannot be a field of a payload.

    Example::

        class Library(BaseWorker):
            @job
            async def find_shelf(self, title: str, floor: int = 0) -> int:
                return 100 * floor + len(title)

            @job(name="research", max_concurrency=2)
            async def research(self, message):
                return {"answer": f"all about {message.payload['topic']}"}

            @job
            async def count(self, until: int):
                for number in range(until):
                    yield {"number": number}

            @job(key="title", on_busy="refuse")
            async def lend(self, title: str) -> None:
                print(f"{title} is lent")


        request = Library.find_shelf.request(title="Moby Dick", floor=2)
    """
    where = "@job:" if name is None else f"@job(name={shorten(name)}):"
    if method is not None and not callable(method):
        raise InvalidJobTypeError(
            f"@job({shorten(method)}): give the name by keyword: @job(name={shorten(method)})"
        )
    if name is not None:
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
    options = {
        "job_sequential": sequential,
        "job_max_concurrency": max_concurrency,
        "job_run_once": run_once,
        "job_key": rule,
    }
    if method is not None:
        return _mark(method, name, where, options)

    def mark(method: Callable[..., Any], /) -> Callable[..., Any]:
        return _mark(method, name, where, options)

    return mark


def _mark(
    method: Callable[..., Any],
    name: str | None,
    where: str,
    options: Mapping[str, object],
) -> Callable[..., Any]:
    if not (iscoroutinefunction(method) or isasyncgenfunction(method)):
        raise InvalidJobTypeError(f"{where} the method is not 'async def'; make it so")
    rule = options["job_key"]
    if isasyncgenfunction(method) and isinstance(rule, KeyRule) and rule.on_busy == "join":
        raise InvalidJobError(
            f"{where} the method streams, and a job that joins would miss the beginning; return a "
            "response, or give another on_busy"
        )
    job_name = name or method.__name__
    # The class body in which the method is defined: two calls up, with and without parentheses.
    frame = currentframe()
    frame = frame and frame.f_back and frame.f_back.f_back
    signature = read_handler(method, job_name, frame)
    if signature is not None and isinstance(rule, KeyRule):
        signature.check_key(rule.fields)
    marks = vars(method)
    # Pipecat's names. A plain Pipecat worker calls what has the first with the message alone, so a
    # typed handler does not have it.
    marks["is_job_handler"] = signature is None
    marks["job_name"] = job_name
    marks.update(options)
    marks["job_signature"] = signature
    marks["request"] = (signature or MessageRequests(job_name)).request
    return method


def find_signature(method: object) -> HandlerSignature | None:
    """Find the signature of a typed handler; None for anything else."""
    signature: object = getattr(method, "job_signature", None)
    return signature if isinstance(signature, HandlerSignature) else None


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
            # Most attributes have no marks; this runs over all of them for each new worker.
            marks: Mapping[str, Any] | None = getattr(method, "__dict__", None)
            if not marks or not callable(method):
                continue
            signature = find_signature(method)
            if signature is None and not getattr(method, "is_job_handler", False):
                continue
            spec = HandlerSpec(
                attribute,
                marks["job_name"],
                bool(marks.get("job_sequential")),
                marks.get("job_max_concurrency"),
                bool(marks.get("job_run_once")),
                marks.get("job_key"),
                signature,
            )
            if (other := handlers.get(spec.job_name)) is not None:
                raise DuplicateJobHandlerError(
                    spec.job_name, worker_class.__qualname__, other.attribute, attribute
                )
            handlers[spec.job_name] = spec
    return handlers


def prepare_handlers(worker_class: type) -> Mapping[str, HandlerSpec]:
    """Find the handlers of a class, and resolve the annotations of those that are typed."""
    handlers = collect_handlers(worker_class)
    for spec in handlers.values():
        if spec.signature is not None:
            spec.signature.prepare()
            if spec.key is not None:
                spec.signature.check_aliases(spec.key.fields)
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
