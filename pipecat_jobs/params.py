"""How a job is asked for: Pipecat's parameter objects, with an id of the caller's choice."""

import uuid
from collections.abc import Sequence
from typing import TypedDict

from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams

from pipecat_jobs.deadline import check_timeout
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData


class JobParams(PipecatJobParams):
    """How to run a job at one worker. Pipecat's ``JobParams``, plus ``job_id``.

    Parameters:
        name: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        payload: What the job is about.
        timeout: Seconds for all of it: readiness, queueing and work. None for no deadline.
        label: A title for people, e.g. on a client's progress card.
        cancellable: Whether ``request_cancel_job_group()`` may cancel it.
        job_id: The job's id, or None to have one made.
    """

    job_id: str | None = None


class JobGroupParams(JobParams, PipecatJobGroupParams):
    """How to run a job at several workers. Pipecat's ``JobGroupParams``, plus ``job_id``.

    Parameters:
        cancel_on_error: Whether the first worker that does not complete ends the group. When
            False the group ends when every worker has, and ``outcomes`` tells who did what.
    """


class JobKeywords(TypedDict, total=False):
    """The arguments of ``job()`` and ``request_job()``; each may be left out.

    Parameters:
        name: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        payload: What the job is about.
        timeout: Seconds for all of it: readiness, queueing and work. None for no deadline.
        label: A title for people, e.g. on a client's progress card.
        cancellable: Whether ``request_cancel_job_group()`` may cancel it; True by default.
        job_id: The id to use, or None to have one made.
    """

    name: str | None
    payload: JobData | None
    timeout: float | None
    label: str | None
    cancellable: bool | None
    job_id: str | None


class JobGroupKeywords(JobKeywords, total=False):
    """The arguments of ``job_group()`` and ``request_job_group()``; each may be left out.

    Parameters:
        cancel_on_error: Whether the first worker that does not complete ends the group and cancels
            the rest; True by default.
    """

    cancel_on_error: bool | None


def group_params(
    params: PipecatJobParams | None,
    keywords: JobKeywords | JobGroupKeywords,
    allowed: type[JobKeywords],
) -> JobGroupParams:
    """Make one checked parameter object of either form a job can be asked for in.

    Args:
        params: What the caller passed as ``params``, if anything.
        keywords: What the caller passed as keywords.
        allowed: Which keywords the call has.

    Returns:
        The parameters, all of them valid, with a job id made where none was given.

    Raises:
        InvalidJobError: If a value cannot be used; the message says what to write instead.
        TypeError: If both forms were used in one call, or a keyword is unknown.
    """
    unknown = keywords.keys() - allowed.__optional_keys__
    if unknown:
        raise TypeError(
            f"unexpected keyword {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(allowed.__optional_keys__))}"
        )
    given: dict[str, object] = {k: value for k, value in keywords.items() if value is not None}
    if params is not None:
        if given:
            raise TypeError(
                f"give either params= or {', '.join(f'{key}=' for key in sorted(given))}, not both"
            )
        if not isinstance(params, PipecatJobParams):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJobTypeError(f"params is {params!r}; give a JobParams or JobGroupParams")
        given = {key: getattr(params, key) for key in type(params).model_fields}
    _expect(given, "name", str, "the name of a @job handler")
    _expect(given, "payload", dict, "a dict that describes the work")
    _expect(given, "label", str, "a title for people")
    _expect(given, "job_id", str, "a string that no open job has")
    _expect(given, "cancellable", bool, "True or False")
    _expect(given, "cancel_on_error", bool, "True or False")
    for key in ("name", "job_id"):
        if given.get(key) == "":
            raise InvalidJobError(f"{key} is empty; leave it out to have none given")
    given["timeout"] = check_timeout(given.get("timeout"))
    given["job_id"] = given.get("job_id") or str(uuid.uuid4())
    return JobGroupParams.model_validate(given)


def check_worker_names(names: Sequence[object]) -> list[str]:
    """Check whom a job is for.

    Args:
        names: The workers' names, as the caller gave them.

    Returns:
        The names, in the caller's order.

    Raises:
        InvalidJobTypeError: If one is no string.
        InvalidJobError: If there is none, one is empty, or one is named twice.
    """
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str):
            raise InvalidJobTypeError(
                f"worker name is {name!r}, a {type(name).__name__}; give the worker's name as a str"
            )
        if not name:
            raise InvalidJobError("worker name is empty; give the name the worker was made with")
        if name in checked:
            raise InvalidJobError(
                f"worker '{name}' is named twice; name each worker once, and start a second job "
                "for a second answer"
            )
        checked.append(name)
    if not checked:
        raise InvalidJobError("a job group needs at least one worker name")
    return checked


def check_data(what: str, data: object) -> JobData | None:
    """Refuse an answer, an update or a chunk that is neither a dict nor None.

    Args:
        what: What it is, for the message.
        data: What the caller gave.

    Returns:
        The same object.

    Raises:
        InvalidJobTypeError: If it is something else.
    """
    if data is not None and not isinstance(data, dict):
        raise InvalidJobTypeError(f"{what} is {data!r}; give a dict, e.g. {{'text': ...}}, or None")
    return data


def _expect(given: dict[str, object], key: str, kind: type, wanted: str) -> None:
    value = given.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidJobTypeError(f"{key} is {value!r}; give {wanted}")
