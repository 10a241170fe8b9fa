"""The results of tool calls for the LLM: the responses, and the failures in plain words."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs.errors import InvalidJobError, JobError
from pipecat_jobs.outcomes import CancelReason, JobOutcome, JobRefusal, JobToolError, OutcomeStatus
from pipecat_jobs.steering import SteerOutcome
from pipecat_jobs.tools.options import Render

#: The largest number of characters of a worker's error message that the LLM gets.
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
    """The result of a call of a tool.

    Parameters:
        value: The result for the LLM.
        run_llm: Whether the LLM runs on it. None for Pipecat's rule: the LLM runs once all calls of
            one answer have their results.
        next_node: The next node of a flow; None to stay in the node.
        then: What to do once the call has its result; None for nothing.
    """

    value: object
    run_llm: bool | None = None
    next_node: object = None
    then: Callable[[], None] | None = None


def to_tool_result(tool_name: str, value: object) -> Any:
    """Convert the result of a call to JSON that is neither empty nor false.

    Pipecat does not run the LLM on an empty or false result, so the bot would stay silent.
    """
    written = to_context_value(value)
    if _is_empty(written):
        return {"status": f"{tool_name} {_NOTHING_SAID}"}
    return written or {"result": written}


def report_steered(tool_name: str, outcomes: Mapping[str, SteerOutcome]) -> ToolResult | None:
    """Make the result of a call that steers the jobs of another one; None if those have ended."""
    reasons = {name: each.reason for name, each in outcomes.items() if each.state == "refused"}
    if any(outcome.accepted for outcome in outcomes.values()):
        value: dict[str, object] = {
            "steered": f"The running call of {tool_name} takes this into account. Its result comes "
            "with that call."
        }
        return ToolResult(value | ({"refused": reasons} if reasons else {}))
    if not reasons:
        return None
    why = "; ".join(str(reason) for reason in reasons.values())
    return ToolResult({"error": f"The running call of {tool_name} does not take this: {why}"})


def _is_empty(written: object) -> bool:
    # Zero and False are results.
    return written in (None, "", [], {})


def report(tool_name: str, outcomes: Mapping[str, JobOutcome]) -> object:
    """Make a result from the responses and the failures.

    The response of a single worker is the result itself, and its failure is reported without its
    name, which the user does not know. The responses of several workers are listed by worker. A
    worker whose response was not needed is not listed.
    """
    if len(outcomes) == 1:
        (outcome,) = outcomes.values()
        return outcome.response if outcome.completed else report_failure(tool_name, outcomes)
    responses = {
        name: outcome.response or _NOTHING_SAID
        for name, outcome in outcomes.items()
        if outcome.completed
    }
    missing = {
        name: _find_text_for_llm(outcome) or _describe_failure(outcome)
        for name, outcome in outcomes.items()
        if not outcome.completed and outcome.cancel_reason is not CancelReason.NOT_NEEDED
    }
    return {"answers": responses} | ({"missing": missing} if missing else {})


def report_failure(tool_name: str, outcomes: Mapping[str, JobOutcome]) -> object:
    """Make ``{"error": why}``, with the names of the failed workers if several were asked."""
    failures = [outcome for outcome in outcomes.values() if not outcome.completed]
    # With cancel_on_error the others were cancelled because of the one that failed.
    culprits = [o for o in failures if o.status is not OutcomeStatus.CANCELLED] or failures
    if len(outcomes) == 1:
        (culprit,) = culprits
        return {"error": _find_text_for_llm(culprit) or f"{tool_name} {_describe_failure(culprit)}"}
    return {
        "error": "; ".join(
            f"{o.worker}: {text}"
            if (text := _find_text_for_llm(o))
            else f"{o.worker} {_describe_failure(o)}"
            for o in culprits
        )
    }


def _find_text_for_llm(outcome: JobOutcome) -> str | None:
    """Return the worker's error message, if it is meant for an LLM."""
    error = outcome.error
    if error is None:
        return None
    if error.for_llm:
        return error.message or None
    # A response of status "failed" has the bot author's own message; an error with a type has an
    # exception's message.
    if outcome.status is OutcomeStatus.FAILED and not error.type:
        return _shorten(error.message) or None
    return None


def _describe_failure(outcome: JobOutcome) -> str:
    """Describe why there is no response, in words that follow a name."""
    if outcome.refusal is JobRefusal.BUSY:
        return "was refused, because an earlier one for the same thing is still running"
    why = _WENT_WRONG[outcome.status]
    if outcome.status is OutcomeStatus.CANCELLED and outcome.reason:
        # The author of the bot or this package has written the reason; it is never the text of an
        # exception.
        return f"{why}: {_shorten(outcome.reason)}"
    if outcome.status is OutcomeStatus.ERROR and outcome.error is not None and outcome.error.type:
        return f"{why} ({outcome.error.type})"
    return why


def _shorten(message: str) -> str:
    """Return the text before any traceback, limited in length."""
    text, _, _ = message.partition("Traceback (most recent call last)")
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


async def render_result(
    tool_name: str, render: Render, outcomes: Mapping[str, JobOutcome]
) -> object:
    """Make the result with ``render``, or with :func:`report` if that raises or returns nothing."""
    where = f"render {getattr(render, '__qualname__', repr(render))}"
    task = RunningTask()
    try:
        result: Any = render(outcomes)
        if inspect.isawaitable(result):
            result = await result
    except BaseException as error:
        task.survive(error)
        log_raised(f"{where} raised {type(error).__name__}; using the responses as they are", error)
        return report(tool_name, outcomes)
    # Converted here, where report() can still replace an empty result.
    written = to_context_value(result)
    if _is_empty(written):
        logger.error(f"{where} returned {written!r}; using the responses as they are")
        return report(tool_name, outcomes)
    return written


def make_error_result(tool_name: str, error: BaseException) -> ToolResult:
    """Log an exception in a tool, and make a result from it."""
    if isinstance(error, JobError) and has_stopped(error):
        return make_session_end_result(tool_name)
    if isinstance(error, JobToolError):
        logger.info(f"tool {tool_name} gives the LLM an error: {error}")
        return ToolResult({"error": str(error) or f"{tool_name} could not do it"})
    kind = type(error).__name__
    log_raised(f"tool {tool_name} raised {kind}; the LLM gets an error", error)
    if isinstance(error, JobError) and error.failures:
        return ToolResult(report_failure(tool_name, error.outcomes))
    if isinstance(error, InvalidJobError):
        return ToolResult({"error": f"{tool_name} is not set up correctly and cannot be used."})
    # Without the exception's text, which may be private.
    return ToolResult({"error": f"{tool_name} had an internal error ({kind})."})


def has_stopped(error: JobError) -> bool:
    """Return whether jobs were cancelled because their requester stopped."""
    stopped = CancelReason.REQUESTER_STOPPED
    return any(outcome.cancel_reason is stopped for outcome in error.failures.values())


def make_session_end_result(tool_name: str) -> ToolResult:
    """Make the result of a call that the end of the session cancelled; the LLM does not run."""
    value = {"stopped": f"The session ended before {tool_name} had its result."}
    return ToolResult(value, run_llm=False)


def make_interrupted_result(tool_name: str) -> ToolResult:
    """Make the result of a call that was interrupted before it began; the LLM does not run."""
    value = {"stopped": f"The user interrupted before {tool_name} began; it was not run."}
    return ToolResult(value, run_llm=False)
