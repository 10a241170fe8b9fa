"""The message with which an LLM gets reports."""

import json
from collections.abc import Iterable, Sequence
from itertools import count

from pipecat.processors.aggregators.llm_context import LLMContextMessage

from pipecat_jobs.conversation.report import Report

_SAY = (
    "The reports below are news that the user has not heard. Tell the user about all of them now, "
    "in one short answer, in your own words; do not read out the JSON. If the user has said "
    "something that you have not answered, answer that first. Tell each report once."
)
_GO_ON = (
    " Where a report has 'heard', you were interrupted after these words: say what was not heard "
    "yet, without an apology."
)
_KNOW = (
    " The updates are for your information: mention one only if the user asks about its subject."
)

_numbers = count(1)


def make_message(reports: Sequence[Report]) -> LLMContextMessage:
    """Make one message of reports; it has a number, so that no two messages are equal."""
    loud = [report for report in reports if not report.silent]
    silent = [report for report in reports if report.silent]
    what_to_do = _SAY if loud else ""
    if any(report.heard for report in loud):
        what_to_do += _GO_ON
    if silent:
        what_to_do += _KNOW
    written: dict[str, object] = {
        "type": "report",
        "number": next(_numbers),
        "what_to_do": what_to_do.strip(),
    }
    if loud:
        written["reports"] = list(_describe(loud))
    if silent:
        written["updates"] = list(_describe(silent))
    return {"role": "developer", "content": json.dumps(written, ensure_ascii=False)}


def _describe(reports: Iterable[Report]) -> Iterable[dict[str, object]]:
    for report in reports:
        described: dict[str, object] = {"id": report.id, "report": report.content}
        if report.heard:
            described["heard"] = report.heard
        yield described
