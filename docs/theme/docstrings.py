"""Makes the docstrings, which are plain text in the code, read well on the site."""

import re
import textwrap

import griffe


def _fence(match: re.Match[str]) -> str:
    code = textwrap.dedent(match[1]).strip()
    return f"**Example**\n\n```python\n{code}\n```\n\n"


def to_markdown(docstring: str) -> str:
    """Turn an ``Example::`` into a fence, a role into code, an address or a page into a link."""
    text = re.sub(r"^Example::\n((?:\n| {4}.*(?:\n|\Z))+)", _fence, docstring, flags=re.MULTILINE)
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([\w.]+)`", r"`\1`", text)
    text = re.sub(r"`([^`<]+?)\s+<(https?://[^>`]+)>`_", r"[\1](\2)", text)
    return re.sub(r"``docs/([\w-]+)/([\w-]+)\.md``", r"[\1/\2](../\1/\2.html)", text)


class Docstrings(griffe.Extension):
    """Rewrites each docstring that the reference shows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
