"""Finds the ends of sentences without a network."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_rules_of_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipecat 1.8 downloads NLTK's sentence rules; an empty set of rules needs no network."""
    rules = tmp_path / "tokenizers" / "punkt_tab" / "english"
    rules.mkdir(parents=True)
    for part in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (rules / part).touch()
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    if find_spec("nltk"):
        monkeypatch.setattr(import_module("nltk").data, "path", [str(tmp_path)])
