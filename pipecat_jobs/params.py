"""The arguments of a job: Pipecat's parameter objects with more fields, and their checks."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, TypeVar, cast, get_args

from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from pydantic import InstanceOf, JsonValue, TypeAdapter, ValidationError

from pipecat_jobs._protocol.checks import (
    check_choice,
    check_count,
    check_delay,
    check_flag,
    check_instance,
    check_seconds,
    check_text,
)
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.retry import Retry

#: How many workers of a group have to complete: all of them, the first, or a number of them.
Need: TypeAlias = Literal["all", "first"] | int

#: Chunks of a stream that may be unread unless the requester sets another limit.
UNREAD_LIMIT = 1_000


class JobParams(PipecatJobParams):
    """How to run a job at one worker.

    It has the fields of Pipecat's :class:`~pipecat.pipeline.job_context.JobParams` and more. The
    methods that request a job take it as ``params=``, or take the same fields as keywords.

    Attributes:
        name: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        payload: The data for the handler, a dict, or None.
        timeout: Seconds for the whole job: until the worker is ready, until it has a free slot, and
            for the work. None for no deadline.
        label: A title for people, e.g. on a client's progress card.
        cancellable: Whether ``request_cancel_job_group()`` may cancel the job.
        job_id: The job's id, which no earlier job of this requester had; None to have one made.
        unread_limit: Number of stream chunks from one worker that may be unread before its
            ``send_job_stream_data()`` waits; 0 for no limit. The default is 1,000.
        latest_update_only: Whether an update replaces the previous one of the same worker that has
            not been read.
        run_once: Whether the job is lost with the process that runs it. When False, a bus that
            spans processes begins the job again in another process.
        affinity: A key of at most 256 characters. A bus that spans processes runs the jobs with the
            same key in one process while it lives, and they wait for a free slot there. None for
            the ``job_affinity`` of the worker's class.
        retry: When the job is asked for again; None for never.
        hedge_after: Seconds after which a second attempt begins beside the first; None for never.
        ready_within: Seconds until the worker has to be ready, at most ``timeout``. None for no
            limit but the timeout.
        metadata: Anything to keep with the job at its requester, a dict of JSON-like values; it is
            not sent. None for nothing.

    Example::

        params = JobParams(name="research", payload={"topic": "AI"}, timeout=30)
        print(await self.job("researcher", params=params))
    """

    job_id: str | None = None
    unread_limit: int = UNREAD_LIMIT
    latest_update_only: bool = False
    run_once: bool = False
    affinity: str | None = None
    retry: InstanceOf[Retry] | None = None
    hedge_after: float | None = None
    ready_within: float | None = None
    metadata: dict[str, Any] | None = None


class JobGroupParams(JobParams, PipecatJobGroupParams):
    """How to run a job at several workers.

    It has the fields of Pipecat's :class:`~pipecat.pipeline.job_context.JobGroupParams` and of
    :class:`JobParams`.

    Attributes:
        cancel_on_error: Whether the first worker that does not complete ends the group and cancels
            the other workers' jobs. When False, the group ends when every worker has ended, and
            ``outcomes`` has the outcome of each.
        payloads: The data for the handler of each worker, by worker, in place of ``payload``. None
            when all get the same.
        need: How many workers have to complete: "all", "first", or a number. The jobs of the others
            are then cancelled as not needed.
        partial_after: Seconds after which the responses so far are enough, if there is one; if
            there is none, the next one is. None to wait for what ``need`` says.

    Example::

        params = JobGroupParams(name="research", timeout=30, cancel_on_error=False)
        for name, response in (await self.job_group("wiki", "news", params=params)).items():
            print(name, response)
    """

    payloads: dict[str, JobData] | None = None
    need: Need = "all"
    partial_after: float | None = None


class JobKeywords(TypedDict, total=False):
    """The arguments of ``job()`` and ``request_job()``; each may be left out.

    Parameters:
        name: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        payload: The data for the handler, a dict, or None.
        timeout: Seconds for the whole job: until the worker is ready, until it has a free slot, and
            for the work. None, the default, for no deadline.
        label: A title for people, e.g. on a client's progress card.
        cancellable: Whether ``request_cancel_job_group()`` may cancel the job; True by default.
        job_id: The job's id, which no earlier job of this requester had. None, the default, to have
            one made.
        unread_limit: Number of stream chunks from one worker that may be unread before its
            ``send_job_stream_data()`` waits; 0 for no limit, 1,000 by default. A chunk is read by
            ``async for`` or by an ``on_job_stream_data()`` override.
        latest_update_only: Whether an update replaces the previous one of the same worker that
            ``async for`` has not read; False by default.
        run_once: Whether the job is lost with the process that runs it. When False, the default, a
            bus that spans processes begins the job again in another process.
        affinity: A key of at most 256 characters. A bus that spans processes runs the jobs with the
            same key in one process while it lives, and they wait for a free slot there; see
            :func:`~pipecat_jobs.job_moved`. None, the default, for the ``job_affinity`` of the
            worker's class.
        retry: When the job is asked for again if it did not complete: a
            :class:`~pipecat_jobs.Retry`. None, the default, for never.
        hedge_after: Seconds after which, without a response, a second attempt begins beside the
            first. The first response counts, and the other attempt is cancelled. The second attempt
            goes to the same worker, and to another process of its pool on ``RedisStreamsBus``. In a
            group, the workers are asked one after the other instead. Not together with
            ``run_once``, or with ``affinity`` at one worker. None, the default, for never.
        ready_within: Seconds until the worker has to be ready, at most ``timeout``. Then the call
            raises :class:`~pipecat_jobs.WorkerNotReadyError`. None, the default, for no limit but
            the timeout.
        metadata: Anything to keep with the job at its requester, a dict of JSON-like values; it is
            not sent to the worker; ``open_jobs`` gives it back. None, the default, for nothing.
    """

    name: str | None
    payload: JobData | None
    timeout: float | None
    label: str | None
    cancellable: bool | None
    job_id: str | None
    unread_limit: int | None
    latest_update_only: bool | None
    run_once: bool | None
    affinity: str | None
    retry: Retry | None
    hedge_after: float | None
    ready_within: float | None
    metadata: dict[str, Any] | None


class JobGroupKeywords(JobKeywords, total=False):
    """The arguments of ``job_group()`` and ``request_job_group()``; each may be left out.

    Parameters:
        cancel_on_error: Whether the first worker that does not complete ends the group and cancels
            the other workers' jobs; True by default. Not together with another ``need`` than
            "all", which says how many may fail.
        payloads: The data for the handler of each worker, a dict of dicts by worker, in place of
            ``payload``. None, the default, when all get the same.
        need: How many workers have to complete: "all", the default, "first", or a number from 1 to
            the number of workers. The jobs of the others are then cancelled as not needed. The
            group fails once too few are left. With another value than "all", each worker is asked
            as soon as it is ready.
        partial_after: Seconds after which the responses so far are enough, if there is one; if
            there is none, the next one is. The jobs of the others are cancelled as not needed. It
            is smaller than ``timeout``. None, the default, to wait for what ``need`` says.
    """

    cancel_on_error: bool | None
    payloads: dict[str, JobData] | None
    need: Need | None
    partial_after: float | None


def _check_payload(name: str, value: object) -> JobData:
    # A copy: the bot may change its dict while the job runs.
    return dict(check_instance(name, value, dict, "a dict that describes the work"))


def check_payloads(name: str, value: object) -> dict[str, JobData]:
    """Refuse payloads that are not a dict of dicts by worker."""
    wanted = "a dict with a payload for each worker, e.g. {'wiki': {...}, 'news': {...}}"
    checked: dict[str, JobData] = {}
    for worker, payload in check_instance(name, value, dict, wanted).items():
        key = check_text(f"the worker of {name}", worker, "the name of a worker that is asked")
        checked[key] = _check_payload(f"{name}[{shorten(worker)}]", payload)
    return checked


def check_need(name: str, value: object) -> Need:
    """Refuse a value that does not say how many workers have to complete."""
    if isinstance(value, str):
        return cast("Need", check_choice(name, value, ("all", "first")))
    return check_count(name, value, "'all', 'first' or a number of workers")


@cache
def _metadata_adapter() -> TypeAdapter[dict[str, JsonValue]]:
    return TypeAdapter(dict[str, JsonValue])


def _check_metadata(name: str, value: object) -> dict[str, JsonValue]:
    wanted = "a dict of JSON-like values: texts, numbers, booleans, None, lists and dicts"
    check_instance(name, value, dict, wanted)
    try:
        return _metadata_adapter().validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"][:1]))
        raise InvalidJobTypeError(
            f"{name} has {shorten(first['input'])} at '{where}'; give {wanted}"
        ) from error


_Params = TypeVar("_Params", bound=JobGroupParams)


@dataclass(slots=True)
class CheckedParams:
    """The arguments of a call, each of which has passed the check beside its type.

    Each job reads them often. A pydantic model takes five times as long to make and to read.
    """

    job_id: Annotated[str, partial(check_text, wanted="a string that no open job has")]
    name: Annotated[str | None, partial(check_text, wanted="the name of a @job handler")] = None
    payload: Annotated[JobData | None, _check_payload] = None
    timeout: Annotated[float | None, check_timeout] = None
    label: Annotated[str | None, partial(check_text, wanted="a title for people")] = None
    cancellable: Annotated[bool, check_flag] = True
    unread_limit: Annotated[
        int, partial(check_count, wanted="a number of chunks, 0 for any number", least=0)
    ] = UNREAD_LIMIT
    latest_update_only: Annotated[bool, check_flag] = False
    run_once: Annotated[bool, check_flag] = False
    cancel_on_error: Annotated[bool, check_flag] = True
    affinity: Annotated[
        str | None,
        partial(
            check_text,
            wanted="the key of the jobs that belong in one process, of at most 256 characters",
            most=256,
        ),
    ] = None
    retry: Annotated[
        Retry | None, partial(check_instance, kind=Retry, wanted="a Retry, e.g. Retry(attempts=3)")
    ] = None
    hedge_after: Annotated[float | None, check_seconds] = None
    ready_within: Annotated[float | None, check_delay] = None
    metadata: Annotated[dict[str, JsonValue] | None, _check_metadata] = None
    payloads: Annotated[dict[str, JobData] | None, check_payloads] = None
    need: Annotated[Need, check_need] = "all"
    partial_after: Annotated[float | None, check_seconds] = None

    def to_model(self, model: type[_Params]) -> _Params:
        """Make the parameters as a pydantic model, which bots read or change."""
        return model.model_construct(**{name: getattr(self, name) for name in _CHECKS})


#: The check of each argument. The value None means that the argument was left out.
_CHECKS: dict[str, Callable[[str, object], object]] = {
    each.name: get_args(each.type)[1] for each in fields(CheckedParams)
}
#: The arguments that say something about the others, and are rarely given.
_RELATED = frozenset({"payloads", "need", "partial_after", "ready_within"})


def group_params(
    params: PipecatJobParams | None,
    keywords: JobKeywords | JobGroupKeywords,
    allowed: type[JobKeywords],
) -> CheckedParams:
    """Check a call's ``params=`` or keywords, and make the job id if none was given.

    It raises InvalidJobError for a value that cannot be used, and TypeError for an unknown keyword
    or for both forms in one call.
    """
    given: dict[str, Any] = {}
    if params is None:
        if not allowed.__optional_keys__.issuperset(keywords):
            raise _unknown_keyword(keywords, allowed)
        for name, value in keywords.items():
            if value is not None:
                given[name] = _CHECKS[name](name, value)
    else:
        if keywords:
            raise TypeError(
                f"give either params= or {', '.join(f'{key}=' for key in sorted(keywords))}, "
                "not both"
            )
        check_instance("params", params, PipecatJobParams, "a JobParams or JobGroupParams")
        for name, value in vars(params).items():
            if value is not None and name in _CHECKS:
                given[name] = _CHECKS[name](name, value)
    if "job_id" not in given:
        given["job_id"] = os.urandom(16).hex()
    checked = CheckedParams(**given)
    if not _RELATED.isdisjoint(given):
        _check_related(checked, cancel_on_error_given=keywords.get("cancel_on_error") is not None)
    return checked


def _check_related(params: CheckedParams, *, cancel_on_error_given: bool) -> None:
    """Refuse arguments that contradict each other."""
    if params.payloads is not None and params.payload is not None:
        raise InvalidJobError(
            "payload and payloads are both given; give payload for the same data to every worker, "
            "or payloads for data by worker"
        )
    if params.need != "all" and (cancel_on_error_given or not params.cancel_on_error):
        raise InvalidJobError(
            f"cancel_on_error goes with need='all', not with need={params.need!r}, which says how "
            "many workers may fail; leave one of them out"
        )
    timeout = params.timeout
    if timeout is None:
        return
    if params.partial_after is not None and params.partial_after >= timeout:
        raise InvalidJobError(
            f"partial_after is {params.partial_after:g}, not before timeout={timeout:g}; give "
            "fewer seconds than the timeout"
        )
    if params.ready_within is not None and params.ready_within > timeout:
        raise InvalidJobError(
            f"ready_within is {params.ready_within:g}, longer than timeout={timeout:g}, which "
            "includes the wait for the worker; give at most the timeout"
        )


def _check_hedge(params: CheckedParams, workers: Sequence[str]) -> None:
    """Refuse to hedge a job of which a second attempt must not begin, or would not help."""
    if len(workers) > 1 and params.need != "first":
        raise InvalidJobError(
            "hedge_after asks the workers of a group one after the other, until one has "
            "responded; give need='first' with it"
        )
    if params.run_once:
        raise InvalidJobError(
            "hedge_after begins a second attempt beside the first, which run_once=True forbids; "
            "give one of them"
        )
    if params.affinity is not None and len(workers) == 1:
        raise InvalidJobError(
            "hedge_after asks another process of the worker, and affinity= keeps the job in one; "
            "give one of them"
        )


def _unknown_keyword(
    keywords: JobKeywords | JobGroupKeywords, allowed: type[JobKeywords]
) -> TypeError:
    unknown = keywords.keys() - allowed.__optional_keys__
    return TypeError(
        f"unexpected keyword {', '.join(sorted(unknown))}; "
        f"known: {', '.join(sorted(allowed.__optional_keys__))}"
    )


def check_worker_names(names: Sequence[object]) -> list[str]:
    """Refuse an empty list of names, and a name that is not a string, empty or given twice."""
    checked: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise InvalidJobTypeError(
                f"worker name is {shorten(name)}, a {type(name).__name__}; "
                "give the worker's name as a str"
            )
        if not name:
            raise InvalidJobError("worker name is empty; give the name the worker was made with")
        if name in checked:
            raise InvalidJobError(
                f"worker '{name}' is named twice; name each worker once, and start a second job "
                "for a second response"
            )
        checked[name] = None
    if not checked:
        raise InvalidJobError("a job group needs at least one worker name")
    return list(checked)


def check_workers(names: Sequence[object], params: CheckedParams) -> list[str]:
    """Refuse names that are no list of workers, or that do not fit the other arguments."""
    workers = check_worker_names(names)
    need = params.need
    if isinstance(need, int) and need > len(workers):
        raise InvalidJobError(
            f"need is {need}, more than the {len(workers)} workers that are named; give at most "
            "their number"
        )
    if params.payloads is not None:
        check_payload_names("payloads", params.payloads, workers)
    if params.hedge_after is not None:
        _check_hedge(params, workers)
    return workers


def check_payload_names(name: str, payloads: Mapping[str, JobData], workers: Sequence[str]) -> None:
    """Refuse payloads by worker that are not for exactly the workers that are named."""
    for what, names in (
        ("lacks", [worker for worker in workers if worker not in payloads]),
        ("has the unknown", [worker for worker in payloads if worker not in workers]),
    ):
        if names:
            raise InvalidJobError(
                f"{name} {what} {', '.join(map(shorten, names))}; give one payload for each worker "
                f"that is named: {', '.join(map(repr, workers))}"
            )


def check_data(what: str, data: object) -> JobData | None:
    """Refuse a response, an update or a chunk that is neither a dict nor None."""
    if data is not None and not isinstance(data, dict):
        raise InvalidJobTypeError(
            f"{what} is {shorten(data)}; give a dict, e.g. {{'text': ...}}, or None"
        )
    return data
