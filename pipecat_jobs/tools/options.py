"""The options of ``@job_tool``, checked where they are written."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from pipecat_jobs._protocol.checks import (
    check_callable,
    check_choice,
    check_flag,
    check_seconds,
    check_text,
)
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobOutcome
from pipecat_jobs.params import check_worker_names
from pipecat_jobs.tools.progress import Say

OnFailure = Literal["partial", "fail"]
OnRepeat = Literal["join", "refuse", "replace"]
#: Makes the tool's result of how its jobs ended, by worker.
Render = Callable[[Mapping[str, JobOutcome]], object | Awaitable[object]]

#: Seconds the jobs of a tool call have when no ``timeout`` is given.
DEFAULT_TIMEOUT = 60.0
#: Seconds by which Pipecat's own limit on a tool lies behind our deadline: enough to call the jobs
#: off and report what arrived.
_REPORTING_TIME = 5.0
_YES_OR_NO = ("run_once", "cancel_on_interruption", "cancellable_by_llm", "protected", "progress")
_DEFAULT_SAY = "One moment, I am still waiting for the result."


class JobToolKeywords(TypedDict, total=False):
    """The keyword arguments of ``@job_tool``; each may be left out.

    Parameters:
        job: Name of the ``@job`` handler to run, or None for ``on_job_request``.
        timeout: Seconds from the LLM's call to the result; 60 by default, None for no deadline.
        label: A title for people, e.g. on a client's progress card.
        run_once: Whether a job whose process dies is lost rather than begun again in another, on a
            bus that spans processes: for a payment, say. False by default.
        cancel_on_interruption: Whether the user's speech cancels the jobs; True by default. When
            False the LLM goes on talking and the result comes when it comes.
        cancellable_by_llm: Whether the LLM may cancel a call, with Pipecat's ``cancel_<tool>``;
            needs ``cancel_on_interruption=False``.
        protected: Whether nothing short of the session's end may cut a call off: no interruption,
            no deadline, not the LLM. The LLM is told so.
        on_failure: "partial" reports what arrived and who is missing; "fail" ends all jobs at the
            first that fails and reports an error.
        render: Makes the result, of the outcomes by worker; may be async.
        on_repeat: What the same call does while the first one runs: "join" waits for the first's
            result, "refuse" answers at once, "replace" cancels the first.
        progress: Whether job updates reach the LLM's context; True by default for a call the LLM
            does not wait for, which is the only one that can have them.
        say_after: Seconds of silence after which the bot says something.
        say: What it says: a text, or a function of the progress that may return None.
        say_every: Seconds of silence after which it says something again; None for once.
    """

    job: str | None
    timeout: float | None
    label: str | None
    run_once: bool
    cancel_on_interruption: bool
    cancellable_by_llm: bool
    protected: bool
    on_failure: OnFailure
    render: Render | None
    on_repeat: OnRepeat
    progress: bool
    say_after: float | None
    say: Say
    say_every: float | None


@dataclass(frozen=True, slots=True)
class JobToolOptions:
    """What ``@job_tool`` was given, checked and complete; see :class:`JobToolKeywords`.

    Parameters:
        workers: Whom to ask.
        tool_timeout: The limit Pipecat is to put on a call, in seconds; None for the one of its
            LLM service.
    """

    workers: tuple[str, ...]
    job: str | None
    timeout: float | None
    tool_timeout: float | None
    label: str | None
    run_once: bool
    cancel_on_interruption: bool
    cancellable_by_llm: bool
    protected: bool
    on_failure: OnFailure
    render: Render | None
    on_repeat: OnRepeat
    progress: bool
    say_after: float | None
    say: Say
    say_every: float | None


def check_options(workers: tuple[object, ...], given: JobToolKeywords) -> JobToolOptions:
    """Check what ``@job_tool`` was given, and fill in the rest.

    Args:
        workers: The workers' names.
        given: The keywords.

    Returns:
        The options.

    Raises:
        InvalidJobTypeError: If a value has the wrong type.
        InvalidJobError: If a value, or a combination of them, makes no sense.
        TypeError: If a keyword is unknown.
    """
    unknown = given.keys() - JobToolKeywords.__optional_keys__
    if unknown:
        raise TypeError(
            f"@job_tool has no option {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(JobToolKeywords.__optional_keys__))}"
        )
    if len(workers) == 1 and callable(workers[0]):
        raise InvalidJobTypeError(
            "@job_tool was used without its workers; write @job_tool('researcher', job='research')"
        )
    if not workers:
        raise InvalidJobError("@job_tool() names no worker; name whom to ask")
    names = tuple(check_worker_names(workers))
    _check_texts(given)
    for key in _YES_OR_NO:
        check_flag(key, given.get(key, False))
    for key, known in (("on_failure", get_args(OnFailure)), ("on_repeat", get_args(OnRepeat))):
        check_choice(key, given.get(key, known[0]), known)
    render = given.get("render")
    if render is not None:
        check_callable("render", render, "a function of the outcomes")
    protected = given.get("protected", False)
    if protected:
        _check_protected(given)
    foreground = given.get("cancel_on_interruption", not protected)
    if given.get("cancellable_by_llm") and foreground:
        raise InvalidJobError(
            "cancellable_by_llm=True needs cancel_on_interruption=False: "
            "while the LLM waits for a tool it cannot cancel it"
        )
    if given.get("progress") and foreground:
        raise InvalidJobError(
            "progress=True needs cancel_on_interruption=False: "
            "the LLM hears nothing of a tool that it waits for until the result"
        )
    if protected:
        timeout, tool_timeout = None, math.inf
    else:
        timeout = _check_deadline(given.get("timeout", DEFAULT_TIMEOUT))
        tool_timeout = None if timeout is None else timeout + _REPORTING_TIME
    say_after, say, say_every = _check_speech(given)
    return JobToolOptions(
        workers=names,
        job=given.get("job"),
        timeout=timeout,
        tool_timeout=tool_timeout,
        label=given.get("label"),
        run_once=given.get("run_once", False),
        cancel_on_interruption=foreground,
        cancellable_by_llm=given.get("cancellable_by_llm", False),
        protected=protected,
        on_failure=given.get("on_failure", "partial"),
        render=render,
        on_repeat=given.get("on_repeat", "join"),
        progress=given.get("progress", not foreground),
        say_after=say_after,
        say=say,
        say_every=say_every,
    )


def _check_texts(given: JobToolKeywords) -> None:
    for key, wanted in (("job", "the name of a @job handler"), ("label", "a title for people")):
        value = given.get(key)
        if value is not None:
            check_text(key, value, wanted)


def _check_protected(given: JobToolKeywords) -> None:
    conflicts: list[tuple[str, Any, str]] = [
        ("timeout", None, "it is over when its jobs are; a deadline would cut it"),
        ("cancel_on_interruption", False, "an interruption would cut it"),
        ("cancellable_by_llm", False, "the LLM would cut it"),
    ]
    for key, harmless, why in conflicts:
        value = given.get(key, harmless)
        if value is not harmless:
            raise InvalidJobError(f"protected=True goes without {key}={shorten(value)}: {why}")
    if given.get("on_repeat") == "replace":
        raise InvalidJobError(
            "protected=True goes without on_repeat='replace': the second call would cut the first; "
            "give 'join' or 'refuse'"
        )


def _check_deadline(value: object) -> float | None:
    timeout = check_timeout(value)
    if timeout == 0:
        raise InvalidJobError("timeout is 0; give the seconds the jobs may take, or None")
    return timeout


def _check_speech(given: JobToolKeywords) -> tuple[float | None, Say, float | None]:
    say_after = _check_silence(given, "say_after")
    say_every = _check_silence(given, "say_every")
    if say_after is None:
        for key in ("say", "say_every"):
            if given.get(key) is not None:
                raise InvalidJobError(
                    f"{key} needs say_after: give the seconds of silence before the bot speaks"
                )
    say = given.get("say", _DEFAULT_SAY)
    if not (isinstance(say, str) or callable(say)):
        raise InvalidJobTypeError(
            f"say is {shorten(say)}; give a text, or a function of the progress"
        )
    if say == "":
        raise InvalidJobError("say is empty; give a text, or leave say_after out for silence")
    return say_after, say, say_every


def _check_silence(given: JobToolKeywords, key: str) -> float | None:
    value = given.get(key)
    return None if value is None else check_seconds(key, value)
