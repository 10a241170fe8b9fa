"""What the site does beside mkdocs: it shows diagrams as pictures, and refuses other servers.

GitHub draws a fence of mermaid itself. The site would have to load mermaid from another server, so
it shows the picture that `make diagrams` has drawn, under a name that changes with the text.
"""

import hashlib
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

PICTURES = Path(__file__).parents[1] / "images" / "diagrams"
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(
    r"""<(?:script|img|iframe|audio|video|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*\shref=["']?https?://[^"'\s>]+[^>]*\brel=["']?stylesheet"""
    r"""|<link\b[^>]*\brel=["']?stylesheet[^>]*\shref=["']?https?://[^"'\s>]+"""
)


def name_picture(diagram: str) -> str:
    """Return the name of the picture of a diagram."""
    return f"{hashlib.sha256(diagram.encode()).hexdigest()[:8]}.svg"


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
    """Show each diagram of a page as its picture."""

    def show(match: re.Match[str]) -> str:
        name = name_picture(match[1])
        if not (PICTURES / name).is_file():
            raise PluginError(f"{page.file.src_uri} has a diagram without a picture: make diagrams")
        up = "../" * page.file.src_uri.count("/")
        return f"![The states and their transitions]({up}images/diagrams/{name}){{.diagram}}"

    return DIAGRAM.sub(show, markdown)


def on_post_page(output: str, page: Page, **kwargs: object) -> str:
    """Refuse a page that loads something from another server."""
    loaded = _LOADED.search(output)
    if loaded:
        raise PluginError(f"{page.file.src_uri} loads from another server: {loaded[0]}")
    return output
