"""The page of the debate without a browser: its files, its routes, and what the bot sends to it."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from starlette.testclient import TestClient
from support.sentences import no_rules_of_sentences
from support.typing_client import TypingClient

from examples.debate.page import FOLDER, add_page
from examples.debate.script import write_script
from examples.debate.speech import TypedSpeech
from examples.debate.stage import Provider
from examples.debate.voice import converse
from examples.debate.workers import DEBATERS
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Stall

__all__ = ["no_rules_of_sentences"]

FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
HTML = (FOLDER / "index.html").read_text()
#: What the tests with a browser rely on.
IDS = (
    "talk connect-typed stop say captions level permission voice interrupted interrupt mute "
    "devices status topic welcome"
).split()
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


# The files


@pytest.fixture
def browser() -> TestClient:
    app = FastAPI()
    add_page(app)
    return TestClient(app)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_served_and_asked_for_again_each_time(browser: TestClient, file: Path):
    path = "/" if file.name == "index.html" else f"/page/{file.name}"
    response = browser.get(path)

    assert response.content == file.read_bytes()
    assert response.headers["content-type"] == TYPES[file.suffix]
    assert response.headers["cache-control"] == "no-cache"
    assert browser.head(path).status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/nothing.js", "/page/../page.py"])
def test_nothing_else_is_served(browser: TestClient, path: str):
    assert browser.get(path).status_code == 404


def test_the_page_has_the_elements_that_its_script_and_the_browser_tests_use():
    ids = re.findall(r'\bid="([^"]+)"', HTML)
    used = re.findall(r'\b(?:find|setText)\("#([\w-]+)', (FOLDER / "page.js").read_text())

    assert len(ids) == len(set(ids))
    assert {*IDS, *used} <= set(ids)
    assert re.findall(r'data-debater="(\w+)" data-state="idle"', HTML) == list(DEBATERS)
    for kind in ("words", "state", "seconds"):
        assert HTML.count(f'class="{kind}"') == len(DEBATERS)
    assert '<body data-connection="off">' in HTML
    assert re.search(r'id="level" role="meter".*?aria-valuenow="0"', HTML, re.DOTALL)
    assert len(re.findall(r"<button type=\"button\" data-topic=", HTML)) == 3


def test_the_states_of_the_page_have_a_look():
    scripts = "".join(file.read_text() for file in SCRIPTS)
    style = (FOLDER / "style.css").read_text()

    for state in ("waiting", "speaking", "done", "cut", "failed"):
        assert f'"{state}"' in scripts
        assert f'[data-state="{state}"]' in style
    for state in ("off", "connecting", "on", "lost"):
        assert f'#set("{state}"' in scripts
    for side in ("user", "bot"):
        assert f'#add("{side}")' in scripts
        assert f'[data-side="{side}"]' in style


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_asks_another_machine(file: Path):
    text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")

    assert not re.findall(r"(?:https?:|wss?:)?//(?=\w)\S+|@import", text)


def test_every_file_that_the_page_loads_is_there():
    loaded = re.findall(r'(?:href|src)="(/[^"]*)"', HTML)
    for file in SCRIPTS:
        loaded += re.findall(r'from "([^"]+)"', file.read_text())

    assert {"/page/page.js", "/page/style.css", "/page/captions.js"} <= set(loaded)
    assert {path.removeprefix("/page/") for path in loaded} <= {file.name for file in FILES}


@pytest.mark.skipif(shutil.which("node") is None, reason="Node parses the scripts; it is not here")
@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_the_scripts_are_javascript(file: Path, tmp_path: Path):
    module = tmp_path / f"{file.stem}.mjs"
    module.write_bytes(file.read_bytes())

    subprocess.run(["node", "--check", module], check=True, timeout=100)


# What the bot sends


@pytest.fixture
async def server() -> AsyncIterator[ScriptedLLMServer]:
    async with ScriptedLLMServer() as server:
        yield server


@asynccontextmanager
async def conversation(
    server: ScriptedLLMServer, connection: SmallWebRTCConnection | None = None
) -> AsyncIterator[TypingClient]:
    """Hold a typed conversation with a client in this process."""
    connection = connection or SmallWebRTCConnection()
    provider = Provider("scripted", "scripted", "none", server.base_url)
    async with asyncio.TaskGroup() as tasks:

        async def answer(offer: dict[str, str]) -> dict[str, str]:
            await connection.initialize(**offer)
            transport = SmallWebRTCTransport(connection, TransportParams())
            tasks.create_task(converse(transport, provider, TypedSpeech()))
            return connection.get_answer()

        async with TypingClient(answer) as client:
            yield client


def cards(client: TypingClient, kind: str) -> list[dict[str, Any]]:
    return [card for card in client.of_type("ui-job-group") if card["kind"] == kind]


def words(client: TypingClient, debater: str) -> str:
    """The words of a debater as the page shows them."""
    messages = client.of_type("server-message")
    chunks = [m["chunks"] for m in messages if m["event"] == "stream" and m["worker"] == debater]
    return "".join(chunk["text"] for part in chunks for chunk in part)


def of_debaters(server: ScriptedLLMServer) -> list[LLMRequest]:
    return [request for request in server.requests if not request.tools]


async def test_the_page_gets_the_words_of_each_debater_and_how_it_ended(
    server: ScriptedLLMServer,
):
    write_script(server, tempo=0)
    async with conversation(server) as client:
        await client.until(lambda: bool(client.of_type("bot-llm-stopped")))
        client.type("May cats vote without the critic?")
        await client.until(lambda: bool(cards(client, "group_completed")))

    assert cards(client, "group_started")[0]["workers"] == list(DEBATERS)
    ends = {card["worker_name"]: card for card in cards(client, "job_completed")}
    assert {name: end["status"] for name, end in ends.items()} == {
        "advocate": "completed",
        "critic": "error",
        "analyst": "completed",
    }
    for name in ("advocate", "analyst"):
        assert words(client, name) == ends[name]["response"]["text"]
    assert words(client, "critic") == ""


async def test_the_page_interrupts_the_debaters_without_a_word(server: ScriptedLLMServer):
    server.on("Topic: May dogs vote?", Stall("I hold"))
    write_script(server, tempo=0)
    async with conversation(server) as client:
        await client.until(lambda: bool(client.of_type("bot-llm-stopped")))
        client.type("May dogs vote?")
        await client.until(lambda: all(words(client, name) == "I hold" for name in DEBATERS))
        interruptions = len(client.of_type("bot-interrupted"))

        client.tell("client-message", {"t": "interrupt"})
        for request in of_debaters(server):
            await request.wait_hung_up()
        await client.until(lambda: bool(cards(client, "group_completed")))

    ends = cards(client, "job_completed")
    assert [end["status"] for end in ends] == ["cancelled"] * 3
    assert len(client.of_type("bot-interrupted")) == interruptions + 1
    # The moderator is silent until the user says something.
    assert [request.last_user_text for request in server.requests if request.tools] == [
        "",
        "May dogs vote?",
    ]


async def test_the_moderator_greets_once_when_the_connection_is_reported_twice(
    server: ScriptedLLMServer,
):
    write_script(server, tempo=0)
    connection = SmallWebRTCConnection()
    async with conversation(server, connection) as client:
        await client.until(lambda: bool(client.of_type("bot-llm-stopped")))
        # Pipecat reports it twice by itself when it is made while the pipeline starts.
        await connection.connect()
        client.type("May cats vote?")
        await client.until(lambda: bool(cards(client, "group_completed")))

    assert client.read.count("Hello!") == 1
