"""What the LLM is told of a call: answers, and in plain words what went wrong."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pipecat_jobs.errors import InvalidJobError, JobError
from pipecat_jobs.outcomes import CancelReason, JobOutcome, OutcomeStatus
from pipecat_jobs.tools.context_value import to_context_value
from pipecat_jobs.tools.options import Render
from pipecat_jobs.tools.raised import OwnTask, log_raised

#: Characters of somebody else's error message that are passed on.
_LONGEST_MESSAGE = 300
_NOTHING_SAID = "finished, and had nothing to add"
_WENT_WRONG = {
    OutcomeStatus.TIMED_OUT: "did not answer in time",
    OutcomeStatus.LOST: "went away without an answer",
    OutcomeStatus.CANCELLED: "was stopped before it answered",
    OutcomeStatus.FAILED: "could not do it",
    OutcomeStatus.ERROR: "had an error",
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


def plain(message: str) -> str:
    """Shorten an error message to what an LLM may read.

    Args:
        message: The message, which may have a traceback in it.

    Returns:
        Its text before any traceback, limited in length.
    """
    text, _, _ = message.partition("Traceback (most recent call last)")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def why_missing(outcome: JobOutcome) -> str:
    """Say why a worker gave no answer.

    Args:
        outcome: How its job ended, other than completed.

    Returns:
        Half a sentence, to follow the worker's name.
    """
    why = _WENT_WRONG[outcome.status]
    # What ends a job from here has its own words; what a worker says of itself is added.
    details = ""
    if outcome.status in (OutcomeStatus.FAILED, OutcomeStatus.ERROR) and outcome.error is not None:
        details = plain(outcome.error.message)
    elif outcome.status is OutcomeStatus.CANCELLED and outcome.reason:
        details = plain(outcome.reason)
    return f"{why}: {details}" if details else why


def report(outcomes: Mapping[str, JobOutcome]) -> object:
    """Make a result of all that arrived, and of who is missing.

    Args:
        outcomes: How it ended, for each worker asked.

    Returns:
        One worker's answer as it is, several by worker.
    """
    answers = {
        name: outcome.response or _NOTHING_SAID
        for name, outcome in outcomes.items()
        if outcome.completed
    }
    missing = {
        name: why_missing(outcome) for name, outcome in outcomes.items() if not outcome.completed
    }
    if len(outcomes) == 1:
        (name,) = outcomes
        if missing:
            return {"missing": missing}
        return outcomes[name].response or {"status": f"{name} {_NOTHING_SAID}"}
    return {"answers": answers} | ({"missing": missing} if missing else {})


def first_failure(outcomes: Mapping[str, JobOutcome]) -> object:
    """Make an error result that names who failed, and why.

    Args:
        outcomes: How it ended, for each worker asked; not all completed.

    Returns:
        The result.
    """
    failures = [outcome for outcome in outcomes.values() if not outcome.completed]
    # The others were cancelled because of the one that failed.
    culprits = [o for o in failures if o.status is not OutcomeStatus.CANCELLED] or failures
    return {"error": "; ".join(f"{o.worker} {why_missing(o)}" for o in culprits)}


async def rendered(render: Render, outcomes: Mapping[str, JobOutcome]) -> object:
    """Have the tool's own function make the result.

    Args:
        render: The function, async or not.
        outcomes: How it ended, for each worker asked.

    Returns:
        Its result, or that of :func:`report` if it raised or gave nothing.

    Raises:
        BaseException: What ends the task itself, such as the cancellation of the call.
    """
    where = f"render {getattr(render, '__qualname__', repr(render))}"
    own_task = OwnTask()
    try:
        result: Any = render(outcomes)
        if inspect.isawaitable(result):
            result = await result
    except BaseException as error:
        if own_task.is_ended_by(error):
            raise
        log_raised(where, error, "reporting the plain answers")
        return report(outcomes)
    # As JSON here rather than later, where nothing is left to put in its place.
    written = to_context_value(result)
    if _says_nothing(written):
        logger.error(f"{where} gave {written!r}; reporting the plain answers")
        return report(outcomes)
    return written


def failed(tool_name: str, worker: object, error: BaseException) -> ToolResult:
    """Make a result of what broke a tool, and log it with its traceback.

    Args:
        tool_name: The tool.
        worker: The worker it runs on.
        error: What it raised.

    Returns:
        The result. The LLM does not comment on it if the worker has stopped.
    """
    if isinstance(error, JobError) and has_stopped(error):
        return session_ended(tool_name)
    log_raised(f"tool {tool_name}", error, "the LLM is told that it failed")
    if isinstance(error, JobError) and error.failures:
        return ToolResult(first_failure(error.outcomes))
    if isinstance(error, InvalidJobError):
        return ToolResult({"error": f"{tool_name} is not set up correctly and cannot be used."})
    why = plain(str(error)) or type(error).__name__
    return ToolResult({"error": f"{tool_name} failed: {why}"})


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
