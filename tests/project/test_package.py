"""What is uploaded to the package index: the source archive and the wheel."""

import os
import re
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.snippets import ROOT
from uv import find_uv_bin

UV = find_uv_bin()
MAKEFILE = (ROOT / "Makefile").read_text()


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_index_takes_both_archives_and_they_hold_what_they_should(tmp_path: Path):
    run(UV, "build", "--quiet", "--out-dir", tmp_path)
    [wheel], [source] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)

    with ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        readme = str(message_from_bytes(archive.read(metadata)).get_payload())
    assert "pipecat_jobs/py.typed" in names
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"pipecat_jobs", metadata.partition("/")[0]}
    # The index shows the README without the files beside it.
    links = re.findall(r"(?:\]\(|src=\"|srcset=\"|href=\")([^)\"]*)", readme)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []

    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert sources >= {
        "LICENSE",
        "Makefile",
        "examples/job_tool.py",
        "tests/conftest.py",
        "uv.lock",
    }
    assert not any(name.startswith((".ci", ".github", ".venv")) for name in sources)


def test_every_declared_python_is_tested_by_make_and_by_the_workflow():
    project = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r"Python :: (3\.\d+)", project)
    tested = re.findall(r"3\.\d+", next(re.finditer(r"^NEWER := .*$", MAKEFILE, re.M))[0])
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert declared == ["3.11", *tested]
    assert set(declared) == set(re.findall(r'"(3\.\d+)"', workflow))


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_runs_the_first_program_of_the_readme(tmp_path: Path):
    readme = (ROOT / "README.md").read_text()
    program = re.search(r"^```python.*?\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert program is not None
    printed = re.search(r"^```text.*?\n(.*?)^```$", readme[program.end() :], re.M | re.S)
    assert printed is not None
    (tmp_path / "program.py").write_text(program[1])

    run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path)
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, *tmp_path.glob("*.whl"))
    assert run(python, tmp_path / "program.py", LOGURU_LEVEL="WARNING") == printed[1]
