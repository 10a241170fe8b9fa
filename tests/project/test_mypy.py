"""mypy sees what pyright sees in typed jobs: the same types, and mistakes on the same lines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.snippets import ROOT

pytest.importorskip("mypy")

USAGE = ROOT / "tests" / "typing" / "usage_typed.py"


@pytest.mark.slow
def test_mypy_and_pyright_report_the_same_lines(tmp_path: Path):
    # Pipecat's `tool` has no types.
    options = ["--strict", "--allow-untyped-decorators", f"--cache-dir={tmp_path}"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(USAGE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    reported = re.findall(rf"{USAGE.name}:(\d+): error", checked.stdout)
    lines = enumerate(USAGE.read_text().splitlines(), 1)
    expected = [number for number, line in lines if "# pyright: ignore" in line]
    assert sorted({int(number) for number in reported}) == expected, checked.stdout
