"""The reference of the docs has every public name once."""

import re
from collections import Counter

import pytest
from support.snippets import ROOT

import pipecat_jobs
import pipecat_jobs.bus
import pipecat_jobs.bus.redis
import pipecat_jobs.conversation
import pipecat_jobs.testing
import pipecat_jobs.workers

PAGES = [path.read_text() for path in sorted((ROOT / "docs/reference").glob("*.md"))]
#: What mkdocstrings describes, by its last part.
DESCRIBED = Counter(
    path.rpartition(".")[2] for page in PAGES for path in re.findall(r"^::: (\S+)$", page, re.M)
)
#: Pipecat's own objects, which `index.md` lists.
OF_PIPECAT = {
    name
    for name in pipecat_jobs.__all__
    if getattr(getattr(pipecat_jobs, name), "__module__", "").startswith("pipecat.")
}


@pytest.mark.parametrize(
    "module",
    [
        pipecat_jobs,
        pipecat_jobs.bus,
        pipecat_jobs.bus.redis,
        pipecat_jobs.conversation,
        pipecat_jobs.testing,
        pipecat_jobs.workers,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_described_once(module):
    names = set(module.__all__) - OF_PIPECAT - {"__version__"}
    assert {name: DESCRIBED[name] for name in names if DESCRIBED[name] != 1} == {}


def test_names_of_pipecat_are_listed():
    index = (ROOT / "docs/reference/index.md").read_text()
    listed = index.split("## Names of Pipecat")[1]
    assert {name for name in OF_PIPECAT if f"`{name}`" not in listed} == set()
    assert not OF_PIPECAT & set(DESCRIBED)
