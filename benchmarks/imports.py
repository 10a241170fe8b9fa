"""The time that importing pipecat_jobs adds to importing what it needs of Pipecat."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark, Figure, Spread

#: Packages that only some users of Pipecat have installed.
_OPTIONAL = {"aiohttp", "pytest", "redis", "rich", "starlette", "websockets"}

_PROBE = Path(__file__).with_name("import_probe.py")


async def _import(*beforehand: str) -> dict[str, Any]:
    # Without -P, the modules beside the probe would hide other modules of the same names.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_PROBE), *beforehand),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"importing pipecat_jobs failed:\n{errors.decode()}")
    return json.loads(output)


async def _run(rounds: int) -> list[Figure]:
    loaded = (await _import())["modules"]
    needed = [module for module in loaded if module.partition(".")[0] == "pipecat"]
    runs = [await _import(*needed) for _ in range(rounds)]
    optional = [_OPTIONAL & {module.partition(".")[0] for module in run["modules"]} for run in runs]
    names = ": " + ", ".join(sorted(optional[0])) if optional[0] else ""
    return [
        Figure(
            "import",
            "what we need of Pipecat",
            "ms",
            Spread.of([run["beforehand"] for run in runs]),
        ),
        Figure("import", "pipecat_jobs on top", "ms", Spread.of([run["took"] for run in runs])),
        Figure(
            f"optional packages{names}", "pipecat_jobs on top", "", Spread.of([*map(len, optional)])
        ),
    ]


IMPORT = Benchmark(
    name="import",
    title="what importing pipecat_jobs adds to importing what it needs of Pipecat",
    method=(
        "Every round is a new interpreter. It imports the modules of Pipecat that pipecat_jobs "
        "imports, in the same order, and then pipecat_jobs itself. An optional package "
        f"({', '.join(sorted(_OPTIONAL))}) counts if only pipecat_jobs imports it."
    ),
    rounds=6,
    run=_run,
)
