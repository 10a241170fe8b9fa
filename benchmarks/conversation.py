"""Whether the results of background tools are said, in random conversations."""

import asyncio
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks.benchmark import Benchmark, Figure, Spread
from benchmarks.child import log_errors_only
from benchmarks.restaurant import (
    ENOUGH_SILENCE,
    OURS,
    PIPECATS,
    Mind,
    Played,
    Side,
    make_script,
    play,
)
from pipecat_jobs.testing import run_virtual

#: How many processes play conversations at once.
_AT_ONCE = 2

#: Conversations that a process plays in a row.
_IN_A_ROW = 25


@dataclass(frozen=True)
class _Subject:
    name: str
    side: Side
    #: How the LLM decides what to say; see `Mind`.
    rereads: bool


_SUBJECTS = tuple(
    _Subject(f"{side.name}{', LLM rereads' if rereads else ''}", side, rereads)
    for rereads in (False, True)
    for side in (PIPECATS, OURS)
)


def _make_executor() -> Executor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(_AT_ONCE, mp_context=spawn, initializer=log_errors_only)


def _play_all(subject: _Subject, seeds: Sequence[int]) -> list[Played]:
    return [
        run_virtual(play(subject.side, make_script(seed), Mind(rereads=subject.rereads)))
        for seed in seeds
    ]


async def _run(rounds: int) -> list[Figure]:
    seeds = range(rounds)
    parts = [seeds[start : start + _IN_A_ROW] for start in range(0, rounds, _IN_A_ROW)]
    turns = [(subject, part) for subject in _SUBJECTS for part in parts]
    loop = asyncio.get_running_loop()
    with _make_executor() as executor:
        found = await asyncio.gather(
            *(loop.run_in_executor(executor, _play_all, subject, part) for subject, part in turns)
        )
    played: dict[_Subject, list[Played]] = {subject: [] for subject in _SUBJECTS}
    for (subject, _), some in zip(turns, found, strict=True):
        played[subject].extend(some)
    of_subjects = [_make_figures(subject, all_of_it) for subject, all_of_it in played.items()]
    # The figures of one quantity stand next to each other.
    return [figure for group in zip(*of_subjects, strict=True) for figure in group]


def _make_figures(subject: _Subject, played: Sequence[Played]) -> list[Figure]:
    results = [result for each in played for result in each.results]
    unsaid = [result for result in results if result.times == 0]
    delays = sorted(result.delay for result in results if result.delay is not None)
    samples = {
        ("results", "results"): [len(results)],
        ("said exactly once", "results"): [sum(result.times == 1 for result in results)],
        ("said twice or more", "results"): [sum(result.times > 1 for result in results)],
        ("never said, in enough silence", "results"): [sum(r.had_time for r in unsaid)],
        ("never said, without it", "results"): [sum(not r.had_time for r in unsaid)],
        ("begun while the user spoke", "words"): [sum(each.words_over_user for each in played)],
        ("from a result to its first word", "s"): delays,
        ("the same, of 90 % at most", "s"): [delays[math.ceil(0.9 * len(delays)) - 1]],
        ("LLM runs for a result", "runs"): [sum(p.runs_for_results for p in played) / len(results)],
        ("LLM runs for an update", "runs"): [
            sum(p.runs_for_updates for p in played) / max(1, sum(p.updates for p in played))
        ],
    }
    return [
        Figure(quantity, subject.name, unit, Spread.of(taken))
        for (quantity, unit), taken in samples.items()
    ]


CONVERSATION = Benchmark(
    name="conversation",
    title="whether a bot says what its background tools have found",
    method=(
        "All subjects play the same random conversations, on virtual time: a user orders dishes, "
        "makes small talk, and before half of his sentences does not wait for the bot to end; the "
        "kitchen needs 1 to 25 s for an order, and sends an update about some. The LLM answers "
        "from the messages of its context. It says what is new since its last words; one that "
        "rereads says every result in its context that its words do not mention to the end. "
        "User, LLM, speech service and output transport are simulated, around Pipecat's "
        "aggregators and strategies: a word takes 0.4 s, the LLM 0.4 s, speech begins after "
        "another 0.2 s. A result is said when its words were spoken to their end; it had time "
        f"when the user was silent for {ENOUGH_SILENCE:g} s at once after it had come."
    ),
    rounds=200,
    run=_run,
)
