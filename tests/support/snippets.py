"""Finds the code in documents and docstrings, and runs it."""

import ast
import asyncio
import builtins
import contextlib
import inspect
import io
import re
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"""^```(?P<language>\w+)(?:[ ]title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$""",
    re.MULTILINE | re.DOTALL,
)
_PART_OF = "part of "
#: The virtual clock has an event loop of its own, and Pipecat leaves the connections of a service
#: open, which the test's event loop would warn of.
_NEEDS_A_PROCESS = ("run_virtual(", "OpenAILLMService(")
#: The title of the fence that has what the program above it prints.
PRINTS = "prints"


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a Markdown file of this repository."""

    page: str
    #: The line of the file on which the code begins, from 1.
    line: int
    language: str
    title: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def compile(self, flags: int = 0) -> CodeType:
        """Compile the code so that a traceback shows the line of the page."""
        return compile("\n" * (self.line - 1) + self.code, self.page, "exec", flags=flags)


@dataclass
class Program:
    """A whole program of a page, and below it its parts and what they print, in order."""

    source: Snippet
    below: list[Snippet] = field(default_factory=list[Snippet])

    def __str__(self) -> str:
        return f"{self.source.page}:{self.source.title}"


def snippets(document: str) -> list[Snippet]:
    """All fenced blocks of a Markdown file, in order."""
    text = (ROOT / document).read_text()
    return [
        Snippet(
            document,
            text.count("\n", 0, match.start("code")) + 1,
            match["language"],
            match["title"],
            match["code"],
        )
        for match in _FENCE.finditer(text)
    ]


def programs(document: str) -> dict[str, Program]:
    """The programs of a Markdown file by name, each with its parts."""
    found: dict[str, Program] = {}
    latest: Program | None = None
    for each in snippets(document):
        title = each.title or ""
        if each.language == "python" and title.startswith(_PART_OF):
            latest = found[title.removeprefix(_PART_OF)]
            latest.below.append(each)
        elif each.language == "python" and title:
            latest = found[title] = Program(each)
        elif title == PRINTS:
            assert latest is not None, f"{each} follows no program"
            latest.below.append(each)
    return found


async def play(program: Program) -> dict[str, Any]:
    """Run a program and its parts as a reader would, compare what they print, return the names.

    A part with ``self`` or ``await`` takes the place of the body of ``Host.ask()``, and the program
    is run with it. Any other part is run above the program's ``main()``.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    if any(reason in program.source.code for reason in _NEEDS_A_PROCESS):
        printed = await run_program(program.source.code)
        names["__name__"] = program.source.page
        exec(program.source.compile(), names)
    else:
        printed = await _print_of(_run_as_main(program.source.compile(), names))
    for each in _check_parts(program, names):
        if each.title == PRINTS:
            assert printed == each.code, f"{each}: the program prints\n{printed}"
        else:
            printed = await _print_of(_run_part(each, names))
    return names


def load(document: str, name: str) -> dict[str, Any]:
    """Define what a program of a page and its parts define, and return the names; run nothing."""
    program = programs(document)[name]
    names: dict[str, Any] = {"__name__": document}
    exec(program.source.compile(), names)
    for each in _check_parts(program, names):
        if each.title != PRINTS and not _belongs_into_ask(each):
            exec(each.compile(), names)
    return names


def _check_parts(program: Program, names: dict[str, Any]) -> Iterator[Snippet]:
    """Give what is below a program; refuse a part that uses what only another part imports."""
    known, imported = {*names, "self"}, set[str]()
    for each in program.below:
        if each.title != PRINTS:
            missing = _find_unknown(each, known)
            assert not missing, f"{each} has to import or define {', '.join(sorted(missing))}"
            imported |= _find_imported(each)
        yield each
        known |= names.keys() - imported


def _find_imported(part: Snippet) -> set[str]:
    nodes = ast.walk(ast.parse(part.code))
    imports = [each for each in nodes if isinstance(each, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for each in imports for alias in each.names}


def _find_unknown(part: Snippet, known: set[str]) -> set[str]:
    """Find the names that a part uses and neither defines nor imports, also in code that waits."""
    bound = _find_imported(part)
    used: set[str] = set()
    for node in ast.walk(ast.parse(part.code)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.arg():
                bound.add(node.arg)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.Name(ctx=ast.Load()):
                used.add(node.id)
            case ast.Name():
                bound.add(node.id)
            case _:
                pass
    return used - bound - known - set(vars(builtins))


async def _run_as_main(code: CodeType, names: dict[str, Any]) -> None:
    """Run a program on the event loop of the test, in place of one of its own."""
    mains: list[Coroutine[Any, Any, None]] = []
    with mock.patch.object(asyncio, "run", mains.append):
        exec(code, names)
    for main in mains:
        await main


def _belongs_into_ask(part: Snippet) -> bool:
    code = part.compile(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return bool(code.co_flags & inspect.CO_COROUTINE) or "self" in code.co_names


async def _run_part(part: Snippet, names: dict[str, Any]) -> None:
    if _belongs_into_ask(part):
        body = f"async def ask(self):\n{textwrap.indent(part.code, '    ')}"
        exec(compile("\n" * (part.line - 2) + body, part.page, "exec"), names)
        names["Host"].ask = names.pop("ask")
        await names["main"]()
    else:
        exec(part.compile(), names)


async def _print_of(running: Coroutine[Any, Any, None]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        await running
    return out.getvalue()


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown file of this repository."""
    return [each.code for each in snippets(document) if each.language == language]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a Markdown file."""
    text = _FENCE.sub("", document.read_text())
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


async def run_program(code: str) -> str:
    """Run a whole program in a process of its own, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=PIPE, stderr=PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 250)
    assert process.returncode == 0, errors.decode()
    return out.decode()
