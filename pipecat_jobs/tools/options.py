"""The options of ``@job_tool``, checked when the decorator is called."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast, get_args

from pipecat_jobs._protocol.checks import (
    check_callable,
    check_choice,
    check_flag,
    check_instance,
    check_seconds,
    check_text,
)
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobOutcome
from pipecat_jobs.params import (
    JobGroupKeywords,
    Need,
    check_need,
    check_worker_names,
    check_workers,
    group_params,
)
from pipecat_jobs.retry import Retry
from pipecat_jobs.tools.progress import Say

OnFailure = Literal["partial", "fail"]
OnRepeat = Literal["join", "refuse", "replace", "confirm", "steer"]
RepeatBy = Literal["arguments", "tool"]
Reporting = Literal["in_silence", "at_once"]
#: Makes the tool's result from the outcomes, by worker.
Render = Callable[[Mapping[str, JobOutcome]], object | Awaitable[object]]

#: Seconds that the jobs of a tool call have if no ``timeout`` is given.
DEFAULT_TIMEOUT = 60.0
#: Seconds from the deadline of the jobs to Pipecat's own timeout of a tool: enough to cancel the
#: jobs and report the responses so far.
_REPORTING_TIME = 5.0
_YES_OR_NO = ("run_once", "cancel_on_interruption", "cancellable_by_llm", "protected", "progress")
_DEFAULT_SAY = "One moment, I am still waiting for the result."


class JobToolKeywords(TypedDict, total=False):
    """The keyword arguments of ``@job_tool``; each may be left out.

    Parameters:
        timeout: Seconds from the LLM's call to the deadline of the jobs; 60 by default, None for no
            deadline.
        label: A title for users, e.g. on a client's progress card.
        run_once: Whether a job is lost with the process that runs it; for a payment, for example.
            When False, the default, a bus that spans processes begins it again in another process.
        retry: When a job is asked for again if it did not complete, within ``timeout``; None, the
            default, for never.
        need: How many workers have to complete: "all", the default, "first", or a number. The jobs
            of the others are then cancelled as not needed, and the LLM does not read of them. With
            another value than "all", not together with ``on_failure="fail"``.
        partial_after: Seconds after which the responses so far are enough, if there is one; if
            there is none, the next one is. It is smaller than ``timeout``. None, the default, to
            wait for what ``need`` says.
        hedge_after: Seconds after which, without a response, a second attempt begins beside the
            first. With several workers, which needs ``need="first"``, they are asked one after the
            other instead. Not together with ``run_once``. None, the default, for never.
        cancel_on_interruption: Whether the user's speech cancels the jobs; True by default. When
            False, the LLM goes on talking, and the result arrives later.
        cancellable_by_llm: Whether the LLM may cancel a call, with Pipecat's ``cancel_<tool>``;
            needs ``cancel_on_interruption=False``. False by default.
        protected: Whether only the end of the session cancels a call, and an interruption, a
            deadline and the LLM do not. The tool's description says so. Not together with
            ``need``, ``partial_after`` and ``hedge_after``, which cancel jobs. False by default.
        report: When the LLM tells the user the result of a call for which it does not wait
            (``cancel_on_interruption=False``): "in_silence", the default, as a report that is said
            when nobody speaks (see ``docs/how-to/reports.md``); "at_once" as soon as Pipecat runs
            the LLM on it.
        on_failure: "partial", the default, reports the responses and the workers that did not
            complete. "fail" cancels all jobs when the first one fails, and reports an error.
        render: A function, async or not, that makes the result from a dict of the outcomes by
            worker. None for the results of ``docs/how-to/tools.md``.
        on_repeat: The rule for a second call while the first one runs: "join", the default, waits
            for the first one's result, "refuse" gives an error at once, "replace" cancels the first
            one, "confirm" has the LLM ask the user whether to run it a second time, and "steer"
            tells the first one's jobs the payload of the second, as ``steer()`` does.
        repeat_by: Which calls ``on_repeat`` compares: "arguments", the default, for calls with the
            same arguments, "tool" for all calls of the tool. "join" needs "arguments", and "steer"
            needs "tool".
        progress: Whether the LLM gets to know job updates: the latest of each worker with its next
            run, or with ``report="at_once"`` each of them as a message. It needs a call for which
            the LLM does not wait (``cancel_on_interruption=False``), and is then True by default.
        say_after: Seconds of silence after which the bot speaks; None, the default, for never.
        say: The text that the bot speaks; several texts, which it speaks in turn and then again
            from the first; or a function that gets the :class:`~pipecat_jobs.JobToolProgress` and
            returns a text, or None to stay silent.
        say_every: Seconds of silence after which the bot speaks again; None to speak once.
    """

    timeout: float | None
    label: str | None
    run_once: bool
    retry: Retry | None
    need: Need
    partial_after: float | None
    hedge_after: float | None
    cancel_on_interruption: bool
    cancellable_by_llm: bool
    protected: bool
    report: Reporting
    on_failure: OnFailure
    render: Render | None
    on_repeat: OnRepeat
    repeat_by: RepeatBy
    progress: bool
    say_after: float | None
    say: Say
    say_every: float | None


@dataclass(frozen=True, slots=True)
class JobToolOptions:
    """The options of ``@job_tool``, checked and complete; see :class:`JobToolKeywords`.

    Parameters:
        workers: Names of the workers that do the job.
        job: Name of the ``@job`` handler to run; None for ``on_job_request``.
        tool_timeout: Pipecat's timeout of a call, in seconds; None for the timeout of the LLM
            service.
    """

    workers: tuple[str, ...]
    job: str | None
    timeout: float | None
    tool_timeout: float | None
    label: str | None
    run_once: bool
    retry: Retry | None
    need: Need
    partial_after: float | None
    hedge_after: float | None
    cancel_on_interruption: bool
    cancellable_by_llm: bool
    protected: bool
    report: Reporting
    on_failure: OnFailure
    render: Render | None
    on_repeat: OnRepeat
    repeat_by: RepeatBy
    progress: bool
    say_after: float | None
    say: Say
    say_every: float | None


def check_options(
    workers: tuple[object, ...], job: object, given: JobToolKeywords
) -> JobToolOptions:
    """Check the arguments of ``@job_tool``, and fill in the defaults."""
    unknown = given.keys() - JobToolKeywords.__optional_keys__
    if unknown:
        raise TypeError(
            f"@job_tool has no option {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted({'job', *JobToolKeywords.__optional_keys__}))}"
        )
    if len(workers) == 1 and callable(workers[0]):
        raise InvalidJobTypeError(
            "@job_tool was used without worker names; write @job_tool('researcher', job='research')"
        )
    if not workers:
        raise InvalidJobError("@job_tool() has no worker; give the names of its workers")
    names = tuple(check_worker_names(workers))
    if job is not None:
        job = check_text("job", job, "the name of a @job handler")
    if given.get("label") is not None:
        check_text("label", given.get("label"), "a title for people")
    for key in _YES_OR_NO:
        check_flag(key, given.get(key, False))
    for key, choices in (
        ("report", Reporting),
        ("on_failure", OnFailure),
        ("on_repeat", OnRepeat),
        ("repeat_by", RepeatBy),
    ):
        known = get_args(choices)
        check_choice(key, given.get(key, known[0]), known)
    if given.get("repeat_by") == "tool" and given.get("on_repeat", "join") == "join":
        raise InvalidJobError(
            "repeat_by='tool' excludes on_repeat='join': a call would get the result of a call "
            "with other arguments; give on_repeat='refuse', 'replace' or 'confirm'"
        )
    if given.get("on_repeat") == "steer" and given.get("repeat_by") != "tool":
        raise InvalidJobError(
            "on_repeat='steer' needs repeat_by='tool': a call with the same arguments has nothing "
            "new for the jobs that run"
        )
    render = given.get("render")
    if render is not None:
        check_callable("render", render, "a function of the outcomes")
    retry = given.get("retry")
    if retry is not None:
        check_instance("retry", retry, Retry, "a Retry, e.g. Retry(attempts=3)")
    need = check_need("need", given.get("need", "all"))
    if need != "all" and given.get("on_failure") == "fail":
        raise InvalidJobError(
            f"on_failure='fail' goes with need='all', not with need={shorten(need)}, which says "
            "how many workers may fail; leave one of them out"
        )
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
            "the LLM gets no updates of a tool that it waits for"
        )
    if "report" in given and foreground:
        raise InvalidJobError(
            f"report={shorten(given['report'])} needs cancel_on_interruption=False: "
            "the LLM waits for the result of this tool, and tells it at once"
        )
    if protected:
        timeout, tool_timeout = None, math.inf
    else:
        timeout = _check_deadline(given.get("timeout", DEFAULT_TIMEOUT))
        tool_timeout = None if timeout is None else timeout + _REPORTING_TIME
    asking: JobGroupKeywords = {
        "need": need,
        "partial_after": given.get("partial_after"),
        "hedge_after": given.get("hedge_after"),
        "run_once": given.get("run_once"),
        "timeout": timeout,
    }
    check_workers(names, group_params(None, asking, JobGroupKeywords))
    say_after, say, say_every = _check_speech(given)
    return JobToolOptions(
        workers=names,
        job=job,
        timeout=timeout,
        tool_timeout=tool_timeout,
        label=given.get("label"),
        run_once=given.get("run_once", False),
        retry=retry,
        need=need,
        partial_after=given.get("partial_after"),
        hedge_after=given.get("hedge_after"),
        cancel_on_interruption=foreground,
        cancellable_by_llm=given.get("cancellable_by_llm", False),
        protected=protected,
        report=given.get("report", "in_silence"),
        on_failure=given.get("on_failure", "partial"),
        render=render,
        on_repeat=given.get("on_repeat", "join"),
        repeat_by=given.get("repeat_by", "arguments"),
        progress=given.get("progress", not foreground),
        say_after=say_after,
        say=say,
        say_every=say_every,
    )


def _check_protected(given: JobToolKeywords) -> None:
    conflicts: list[tuple[str, Any, str]] = [
        ("timeout", None, "a deadline would cancel its jobs"),
        ("cancel_on_interruption", False, "an interruption would cancel it"),
        ("cancellable_by_llm", False, "the LLM could cancel it"),
        ("need", "all", "the jobs of the other workers would be cancelled"),
        ("partial_after", None, "the jobs of late workers would be cancelled"),
        ("hedge_after", None, "the slower of two attempts would be cancelled"),
    ]
    for key, harmless, why in conflicts:
        value = given.get(key, harmless)
        if value != harmless:
            raise InvalidJobError(f"protected=True excludes {key}={shorten(value)}: {why}")
    if given.get("on_repeat") == "replace":
        raise InvalidJobError(
            "protected=True excludes on_repeat='replace': the second call would cancel the first; "
            "give 'join', 'refuse' or 'confirm'"
        )


def _check_deadline(value: object) -> float | None:
    timeout = check_timeout("timeout", value)
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
    if not callable(say):
        _check_texts(say)
    return say_after, say, say_every


def _check_texts(say: object) -> None:
    texts = say if isinstance(say, Sequence) and not isinstance(say, str) else (say,)
    wanted = "a text, several texts, or a function of the progress"
    if not texts:
        raise InvalidJobError(f"say is empty; give {wanted}")
    for text in cast("Sequence[object]", texts):
        check_text("say", text, wanted)


def _check_silence(given: JobToolKeywords, key: str) -> float | None:
    value = given.get(key)
    return None if value is None else check_seconds(key, value)
