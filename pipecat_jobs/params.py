"""The arguments of a job: Pipecat's parameter objects with more fields, and their checks."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict

from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams

from pipecat_jobs._protocol.checks import check_count, check_flag, check_instance, check_text
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData

#: Chunks of a stream that may be unread unless the requester sets another limit.
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
        latest_update_only: Whether an update takes the place of the one before it, if that
            has not been read yet.
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


def _check_payload(name: str, value: object) -> JobData | None:
    return check_instance(name, value, dict, "a dict that describes the work")


#: The check of each argument. None stands for one that was left out, and is not checked.
_CHECKS: dict[str, Callable[[str, object], object]] = {
    "name": partial(check_text, wanted="the name of a @job handler"),
    "payload": _check_payload,
    "timeout": lambda name, value: check_timeout(value, name),
    "label": partial(check_text, wanted="a title for people"),
    "cancellable": check_flag,
    "job_id": partial(check_text, wanted="a string that no open job has"),
    "unread_limit": partial(check_count, wanted="a number of chunks, 0 for any number", least=0),
    "latest_update_only": check_flag,
    "run_once": check_flag,
    "cancel_on_error": check_flag,
    "affinity": partial(
        check_text,
        wanted="a string of at most 256 characters that jobs share which belong together",
        most=256,
    ),
}


def group_params(
    params: PipecatJobParams | None,
    keywords: JobKeywords | JobGroupKeywords,
    allowed: type[JobKeywords],
) -> JobGroupParams:
    """Make one checked parameter object of either form a job can be asked for in.

    Args:
        params: The call's ``params=``, or None.
        keywords: The call's keyword arguments.
        allowed: Which keywords the call has.

    Returns:
        The parameters, all of them valid, with a job id made where none was given.

    Raises:
        InvalidJobError: If a value cannot be used; the message says what to write instead.
        TypeError: If both forms were used in one call, or a keyword is unknown.
    """
    given: dict[str, object] = {}
    if params is None:
        for name, value in keywords.items():
            if name not in allowed.__optional_keys__:
                raise _unknown_keyword(keywords, allowed)
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
        given["job_id"] = secrets.token_hex(16)
    return JobGroupParams.model_validate(given)


def _unknown_keyword(
    keywords: JobKeywords | JobGroupKeywords, allowed: type[JobKeywords]
) -> TypeError:
    unknown = keywords.keys() - allowed.__optional_keys__
    return TypeError(
        f"unexpected keyword {', '.join(sorted(unknown))}; "
        f"known: {', '.join(sorted(allowed.__optional_keys__))}"
    )


def check_worker_names(names: Sequence[object]) -> list[str]:
    """Check the names of the workers to ask.

    Args:
        names: The names as they were given.

    Returns:
        The names, in the same order.

    Raises:
        InvalidJobTypeError: If one is not a string.
        InvalidJobError: If there are no names, one is empty, or one is named twice.
    """
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
                "for a second answer"
            )
        checked[name] = None
    if not checked:
        raise InvalidJobError("a job group needs at least one worker name")
    return list(checked)


def check_data(what: str, data: object) -> JobData | None:
    """Refuse a response, an update or a chunk that is neither a dict nor None.

    Args:
        what: What it is, for the message.
        data: The value to check.

    Returns:
        The same object.

    Raises:
        InvalidJobTypeError: If it is something else.
    """
    if data is not None and not isinstance(data, dict):
        raise InvalidJobTypeError(
            f"{what} is {shorten(data)}; give a dict, e.g. {{'text': ...}}, or None"
        )
    return data
