"""A program with Pipecat's own jobs goes on working with the imports of this package."""

import re

import pytest
from support.snippets import ROOT, Program, Snippet, play, programs

PAGE = "docs/coming-from/pipecat.md"


async def test_the_program_prints_the_same_with_the_imports_changed():
    before = programs(PAGE)["before.py"]
    printed, imports = before.below
    old = re.compile(r"^from pipecat\.(pipeline|workers\.base_worker).*\n", re.MULTILINE)
    code, changed = old.subn("", before.source.code)
    assert changed == 3
    source = Snippet(PAGE, 1, "python", "before.py", imports.code + code)
    names = await play(Program(source, [printed]))
    assert names["Library"].__mro__[1].__module__.startswith("pipecat_jobs")


@pytest.mark.parametrize("page", [PAGE, "docs/explanation/differences.md"])
def test_the_imports_of_the_table_exist(page: str):
    rows = re.findall(r"^\| `(from .*)` \| `(from .*)` \|", (ROOT / page).read_text(), re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        for line in row:
            exec(line.replace(", ...", ""), {})
