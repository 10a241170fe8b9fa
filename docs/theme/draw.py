"""Draws the diagrams of the docs for the site: `make diagrams`.

It needs npm, to get mermaid, and Chromium, to run it.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import unescape

sys.path.insert(0, str(Path(__file__).parent))

from hooks import DIAGRAM, PICTURES, name_picture

_MERMAID = "mermaid@11.17.2"
_PAGE = """<body><script src="package/dist/mermaid.min.js"></script><script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false}});
(async () => {{
  const drawn = [];
  for (const [number, diagram] of {diagrams}.entries())
    drawn.push((await mermaid.render("diagram" + number, diagram)).svg);
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(drawn);
}})();
</script></body>"""


def shrink(svg: str) -> str:
    """Leave out what a picture does not need: most digits, and a second copy of each line."""
    svg = re.sub(r' data-points="[^"]*"', "", svg)
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", svg)


def main() -> None:
    """Draw every diagram, and remove the pictures of those that are gone."""
    pages = sorted(PICTURES.parents[1].rglob("*.md"))
    diagrams = [text for page in pages for text in DIAGRAM.findall(page.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", _MERMAID],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        subprocess.run(["tar", "xzf", packed.stdout.strip()], cwd=folder, check=True)
        page = Path(folder, "page.html")
        page.write_text(_PAGE.format(diagrams=json.dumps(diagrams)))
        shown = subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
                *(f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000"),
                *("--dump-dom", page.as_uri()),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    text = shown.stdout.split("<pre>")[1].split("</pre>")[0]
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        old.unlink()
    for diagram, svg in zip(diagrams, json.loads(unescape(text)), strict=True):
        (PICTURES / name_picture(diagram)).write_text(f"{shrink(svg)}\n")


if __name__ == "__main__":
    main()
