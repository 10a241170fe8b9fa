"""What the site of the docs does beside mkdocs. `make docs` builds the site itself."""

from types import SimpleNamespace

import pytest
from support.snippets import ROOT

pytest.importorskip("mkdocstrings_handlers.python", reason="the group `docs` is not installed")

from importlib.util import module_from_spec, spec_from_file_location

from mkdocs.exceptions import PluginError


def load(name: str):
    spec = spec_from_file_location(name, ROOT / f"docs/theme/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load("hooks")
docstrings = load("docstrings")
PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/page.md"))


@pytest.mark.parametrize(
    "loaded",
    [
        '<script async src="https://unpkg.com/mermaid/mermaid.js"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">',
        '<link href="https://fonts.googleapis.com/css" rel="stylesheet">',
        '<img alt="a badge" src="//img.shields.io/badge.svg">',
    ],
)
def test_a_page_that_loads_from_another_server_is_refused(loaded: str):
    with pytest.raises(PluginError, match=r"how-to/page\.md loads from another server"):
        hooks.on_post_page(f"<p>text</p>{loaded}", page=PAGE)


def test_a_page_may_link_to_other_servers_and_load_its_own_files():
    output = '<a href="https://pipecat.ai">Pipecat</a><script src="../assets/a.js"></script>'
    assert hooks.on_post_page(output, page=PAGE) == output


def test_a_diagram_is_shown_as_its_picture():
    (diagram, *_) = hooks.DIAGRAM.findall((ROOT / "docs/how-to/reports.md").read_text())
    shown = hooks.on_page_markdown(f"States:\n\n```mermaid\n{diagram}```\n", page=PAGE)
    assert f"](../images/diagrams/{hooks.name_picture(diagram)}){{.diagram}}" in shown
    assert "mermaid" not in shown


def test_a_diagram_without_a_picture_is_refused():
    with pytest.raises(PluginError, match="make diagrams"):
        hooks.on_page_markdown("```mermaid\nstateDiagram-v2\n```\n", page=PAGE)


def test_every_picture_of_a_diagram_is_shown():
    pages = (page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    shown = {hooks.name_picture(text) for page in pages for text in hooks.DIAGRAM.findall(page)}
    assert {path.name for path in hooks.PICTURES.glob("*.svg")} == shown


def test_a_docstring_becomes_markdown():
    docstring = """Ask for a job, as :class:`~pipecat.pipeline.job_context.JobContext` does.

See ``docs/how-to/asking.md`` and `pydantic
<https://docs.pydantic.dev>`_.

Example::

    print(await self.job("wiki"))

    print("done")

Raises:
    JobError: If it fails.
"""
    assert (
        docstrings.to_markdown(docstring)
        == """Ask for a job, as `JobContext` does.

See [how-to/asking](../how-to/asking.html) and [pydantic](https://docs.pydantic.dev).

**Example**

```python
print(await self.job("wiki"))

print("done")
```

Raises:
    JobError: If it fails.
"""
    )
