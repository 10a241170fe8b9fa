"""What the LLM is told of a call: answers, and in plain words what went wrong."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs.errors import InvalidJobError, JobError
from pipecat_jobs.outcomes import CancelReason, JobOutcome, JobToolError, OutcomeStatus
from pipecat_jobs.tools.options import Render

#: Characters of a worker's own words about a failure that are passed on.
_LONGEST_MESSAGE = 300
_NOTHING_SAID = "finished, and had nothing to add"
_WENT_WRONG = {
    OutcomeStatus.TIMED_OUT: "did not answer in time",
    OutcomeStatus.LOST: "went away without an answer",
    OutcomeStatus.CANCELLED: "was stopped before it answered",
    OutcomeStatus.FAILED: "could not do it",
    OutcomeStatus.ERROR: "had an internal error",
}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call of a tool comes to.

    Parameters:
        value: What the LLM is told.
        run_llm: Whether it comments on that; None for Pipecat's rule, which is yes, once for
            several calls of one answer.
        next_node: Where a flow goes on; None to stay.
    """

    value: object
    run_llm: bool | None = None
    next_node: object = None


def to_tool_result(tool_name: str, value: object) -> Any:
    """Write the result of a call as JSON that says something.

    Pipecat runs no LLM on a result that is empty or false, which silences the bot.

    Args:
        tool_name: The tool.
        value: Its result, of any type.

    Returns:
        A JSON value that is true in a condition and that any provider can be sent.
    """
    written = to_context_value(value)
    if _says_nothing(written):
        return {"status": f"{tool_name} {_NOTHING_SAID}"}
    return written or {"result": written}


def _says_nothing(written: object) -> bool:
    # Unlike a zero or a False, which may be all there is to say.
    return written in (None, "", [], {})


def report(tool_name: str, outcomes: Mapping[str, JobOutcome]) -> object:
    """Make a result of all that arrived, and of who is missing.

    Args:
        tool_name: The tool.
        outcomes: How it ended, for each worker asked.

    Returns:
        One worker's answer as it is, and its failure without its name, of which the user knows
        nothing; those of several by worker.
    """
    if len(outcomes) == 1:
        (outcome,) = outcomes.values()
        return outcome.response if outcome.completed else report_failure(tool_name, outcomes)
    answers = {
        name: outcome.response or _NOTHING_SAID
        for name, outcome in outcomes.items()
        if outcome.completed
    }
    missing = {
        name: _told_to_llm(outcome) or _went_wrong(outcome)
        for name, outcome in outcomes.items()
        if not outcome.completed
    }
    return {"answers": answers} | ({"missing": missing} if missing else {})


def report_failure(tool_name: str, outcomes: Mapping[str, JobOutcome]) -> object:
    """Make an error result that says what went wrong.

    Args:
        tool_name: The tool.
        outcomes: How it ended, for each worker asked; not all completed.

    Returns:
        ``{"error": why}``, with the names of those that failed where several were asked.
    """
    failures = [outcome for outcome in outcomes.values() if not outcome.completed]
    # The others were cancelled because of the one that failed.
    culprits = [o for o in failures if o.status is not OutcomeStatus.CANCELLED] or failures
    if len(outcomes) == 1:
        (culprit,) = culprits
        return {"error": _told_to_llm(culprit) or f"{tool_name} {_went_wrong(culprit)}"}
    return {
        "error": "; ".join(
            f"{o.worker}: {told}" if (told := _told_to_llm(o)) else f"{o.worker} {_went_wrong(o)}"
            for o in culprits
        )
    }


def _told_to_llm(outcome: JobOutcome) -> str | None:
    """Give the words in which a worker says why it failed, if an LLM may read them."""
    error = outcome.error
    if error is None:
        return None
    if error.for_llm:
        return error.message or None
    # A worker that answers "failed" gives the bot author's own words; with the type of an
    # exception they are the exception's.
    if outcome.status is OutcomeStatus.FAILED and not error.type:
        return _shorten(error.message) or None
    return None


def _went_wrong(outcome: JobOutcome) -> str:
    """Say in half a sentence, to follow a name, why there is no answer."""
    why = _WENT_WRONG[outcome.status]
    if outcome.status is OutcomeStatus.CANCELLED and outcome.reason:
        # Words of a bot's author or of this package, at either end; never an exception's.
        return f"{why}: {_shorten(outcome.reason)}"
    if outcome.status is OutcomeStatus.ERROR and outcome.error is not None and outcome.error.type:
        return f"{why} ({outcome.error.type})"
    return why


def _shorten(message: str) -> str:
    """Give what is before any traceback, limited in length."""
    text, _, _ = message.partition("Traceback (most recent call last)")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


async def rendered(tool_name: str, render: Render, outcomes: Mapping[str, JobOutcome]) -> object:
    """Have the tool's own function make the result.

    Args:
        tool_name: The tool.
        render: The function, async or not.
        outcomes: How it ended, for each worker asked.

    Returns:
        Its result, or that of :func:`report` if it raised or gave nothing.

    Raises:
        BaseException: What ends the task itself, such as the cancellation of the call.
    """
    where = f"render {getattr(render, '__qualname__', repr(render))}"
    task = RunningTask()
    try:
        result: Any = render(outcomes)
        if inspect.isawaitable(result):
            result = await result
    except BaseException as error:
        task.survive(error)
        log_raised(f"{where} raised {type(error).__name__}; reporting the plain answers", error)
        return report(tool_name, outcomes)
    # As JSON here rather than later, where nothing is left to put in its place.
    written = to_context_value(result)
    if _says_nothing(written):
        logger.error(f"{where} gave {written!r}; reporting the plain answers")
        return report(tool_name, outcomes)
    return written


def failed(tool_name: str, error: BaseException) -> ToolResult:
    """Make a result of what a tool raised, and log it.

    Args:
        tool_name: The tool.
        error: What it raised.

    Returns:
        The result. The LLM does not comment on it if the worker has stopped.
    """
    if isinstance(error, JobError) and has_stopped(error):
        return session_ended(tool_name)
    if isinstance(error, JobToolError):
        logger.info(f"tool {tool_name} answers with an error: {error}")
        return ToolResult({"error": str(error) or f"{tool_name} could not do it"})
    kind = type(error).__name__
    log_raised(f"tool {tool_name} raised {kind}; the LLM is told that it failed", error)
    if isinstance(error, JobError) and error.failures:
        return ToolResult(report_failure(tool_name, error.outcomes))
    if isinstance(error, InvalidJobError):
        return ToolResult({"error": f"{tool_name} is not set up correctly and cannot be used."})
    # Without its text, which may hold what is not for the user.
    return ToolResult({"error": f"{tool_name} had an internal error ({kind})."})


def has_stopped(error: JobError) -> bool:
    """Tell whether jobs ended because the worker that asked for them stopped.

    Args:
        error: What was raised.

    Returns:
        Whether the worker is why.
    """
    stopped = CancelReason.REQUESTER_STOPPED
    return any(outcome.cancel_reason is stopped for outcome in error.failures.values())


def session_ended(tool_name: str) -> ToolResult:
    """The result of a call that the end of its session cut off.

    Args:
        tool_name: The tool.

    Returns:
        The result, on which the LLM does not comment.
    """
    value = {"stopped": f"The session ended before {tool_name} had its result."}
    return ToolResult(value, run_llm=False)


def interrupted(tool_name: str) -> ToolResult:
    """The result of a call that the user interrupted before it began.

    Args:
        tool_name: The tool.

    Returns:
        The result, on which the LLM does not comment.
    """
    value = {"stopped": f"The user interrupted before {tool_name} began; it was not run."}
    return ToolResult(value, run_llm=False)
