"""Finds the code in documents and docstrings, and runs it."""

import ast
import asyncio
import inspect
import os
import re
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown file of this repository."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a Markdown file."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def docstring_examples(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Name and code of every ``Example::`` in the docstrings a module defines."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        documented = {name: value}
        if inspect.isclass(value):
            documented |= {f"{name}.{key}": member for key, member in vars(value).items()}
        for where, subject in documented.items():
            doc = inspect.getdoc(subject) if callable(subject) else None
            if doc and "Example::" in doc:
                yield where, textwrap.dedent(doc.split("Example::", 1)[1])


async def run(code: str, names: dict[str, Any]) -> None:
    """Execute code that may await at its top level; its names are added to ``names``."""
    compiled: CodeType = compile(code, "<snippet>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await eval(compiled, names)
    else:
        # Code that awaits nothing may run an event loop of its own.
        await asyncio.to_thread(exec, compiled, names)


async def run_program(code: str, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a whole program as a file in a folder, and return what it prints."""
    program = folder / "program.py"
    program.write_text(code)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, program),
        cwd=folder,
        env=os.environ | dict(environment or {}),
        stdout=PIPE,
        stderr=PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 250)
    assert process.returncode == 0, errors.decode()
    return out.decode()
