"""How a job is asked for: Pipecat's parameter objects, with an id of the caller's choice."""

import secrets
from collections.abc import Sequence
from typing import Annotated, TypedDict

from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from pydantic import ConfigDict, Field, ValidationError

from pipecat_jobs.deadline import check_timeout
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData

#: Chunks of a stream that may be unread unless the caller says otherwise.
UNREAD_LIMIT = 1_000


class JobParams(PipecatJobParams):
    """How to run a job at one worker. Pipecat's ``JobParams``, and what only this package has.

    Parameters:
        name: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        payload: What the job is about.
        timeout: Seconds for all of it: readiness, queueing and work. None for no deadline.
        label: A title for people, e.g. on a client's progress card.
        cancellable: Whether ``request_cancel_job_group()`` may cancel it.
        job_id: The job's id, or None to have one made.
        unread_limit: How many stream chunks of a worker may be unread before its
            ``send_job_stream_data()`` waits, 0 for any number.
        latest_update_only: Whether an update takes the place of the one before it, if nobody has
            read that yet.
        run_once: Whether the job is lost with a process that dies at it, on a bus that spans
            processes, rather than begun again in another.
        affinity: A key that jobs share which belong in one process, on a bus that spans processes:
            while that process lives, each waits for it. None for what the worker's class says.
    """

    job_id: str | None = None
    unread_limit: int = UNREAD_LIMIT
    latest_update_only: bool = False
    run_once: bool = False
    affinity: str | None = None


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
        unread_limit: How many stream chunks of a worker may be unread before its
            ``send_job_stream_data()`` waits, 0 for any number; 1,000 by default. It counts while
            ``async for`` reads them or hooks hear them.
        latest_update_only: Whether an update takes the place of the one before it from the same
            worker, if ``async for`` has not read that yet; False by default.
        run_once: Whether the job is lost with a process that dies at it, on a bus that spans
            processes, rather than begun again in another; False by default.
        affinity: A key that jobs share which belong in one process, on a bus that spans processes:
            while that process lives, each waits for it; see :func:`~pipecat_jobs.job_moved`. None,
            the default, for what the worker's ``job_affinity`` says.
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


class JobGroupKeywords(JobKeywords, total=False):
    """The arguments of ``job_group()`` and ``request_job_group()``; each may be left out.

    Parameters:
        cancel_on_error: Whether the first worker that does not complete ends the group and cancels
            the rest; True by default.
    """

    cancel_on_error: bool | None


class _CheckedParams(JobGroupParams):
    """Parameters of which every value has been looked at, once."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1)] | None = None
    job_id: Annotated[str, Field(min_length=1)] | None = None
    unread_limit: Annotated[int, Field(ge=0)] = UNREAD_LIMIT
    affinity: Annotated[str, Field(min_length=1, max_length=256)] | None = None


#: What to give for each argument; the timeout has a check of its own.
_WANTED = {
    "name": "the name of a @job handler",
    "payload": "a dict that describes the work",
    "label": "a title for people",
    "job_id": "a string that no open job has",
    "cancellable": "True or False",
    "cancel_on_error": "True or False",
    "unread_limit": "a number of chunks, 0 for any number",
    "latest_update_only": "True or False",
    "run_once": "True or False",
    "affinity": "a string of at most 256 characters that jobs share which belong together",
}


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
    if params is None:
        if keywords.keys() - allowed.__optional_keys__:
            raise _unknown_keyword(keywords, allowed)
        given: dict[str, object] = {k: value for k, value in keywords.items() if value is not None}
    else:
        if keywords:
            raise TypeError(
                f"give either params= or {', '.join(f'{key}=' for key in sorted(keywords))}, "
                "not both"
            )
        if not isinstance(params, PipecatJobParams):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJobTypeError(f"params is {params!r}; give a JobParams or JobGroupParams")
        given = dict(vars(params))
    if (timeout := given.get("timeout")) is not None:
        given["timeout"] = check_timeout(timeout)
    if given.get("job_id") is None:
        given["job_id"] = secrets.token_hex(16)
    try:
        return _CheckedParams.model_validate(given)
    except ValidationError as error:
        raise _refused(error) from error


def _unknown_keyword(
    keywords: JobKeywords | JobGroupKeywords, allowed: type[JobKeywords]
) -> TypeError:
    unknown = keywords.keys() - allowed.__optional_keys__
    return TypeError(
        f"unexpected keyword {', '.join(sorted(unknown))}; "
        f"known: {', '.join(sorted(allowed.__optional_keys__))}"
    )


def _refused(error: ValidationError) -> InvalidJobError:
    """Say of the first value that cannot be used what to give instead."""
    first = error.errors()[0]
    key, value = str(first["loc"][0]), first["input"]
    if value == "":
        return InvalidJobError(f"{key} is empty; leave it out to have none given")
    wrong_type = first["type"].endswith("_type")
    kind = InvalidJobTypeError if wrong_type else InvalidJobError
    return kind(f"{key} is {value!r}; give {_WANTED[key]}")


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
    checked: dict[str, None] = {}
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
        checked[name] = None
    if not checked:
        raise InvalidJobError("a job group needs at least one worker name")
    return list(checked)


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
