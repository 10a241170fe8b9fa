"""``python -m benchmarks`` runs all benchmarks, ``python -m benchmarks NAME`` one of them."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from loguru import logger

from benchmarks.interruption import INTERRUPTION
from benchmarks.report import as_json, as_text, machine
from benchmarks.round_trip import ROUND_TRIP

BENCHMARKS = {benchmark.name: benchmark for benchmark in (INTERRUPTION, ROUND_TRIP)}


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{rounds} is no number of rounds; give 1 or more")
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run benchmarks and print what they find.

    Args:
        arguments: The command line, without the program; the process's own by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--rounds", type=_rounds, help="how many rounds each takes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")

    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    results = {}
    for name in options.names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        results[benchmark] = asyncio.run(benchmark.run(options.rounds or benchmark.rounds))
        print("", as_text(benchmark, results[benchmark]), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")


if __name__ == "__main__":
    # Pipecat logs every frame it queues, which would be measured with the rest.
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    # Where a proxy is configured, it would be asked for this machine's own server.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    main()
