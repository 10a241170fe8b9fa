"""UI workers with this package's mixin, and the messages of their clients.

A test file takes the ``make`` fixture with ``make = peers_ui.make``.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pipecat.bus.ui.messages import (
    BusUIEventMessage,
    BusUIJobCompletedMessage,
    BusUIJobGroupCompletedMessage,
    BusUIJobGroupStartedMessage,
    BusUIJobUpdateMessage,
)
from pipecat.workers.llm import tool
from pipecat.workers.ui import UIWorker

from pipecat_jobs import JobsMixin
from pipecat_jobs.testing import ChaosBus
from support.peers import llm_services

#: Pipecat's constants for these two moved between releases; the values on the bus did not.
SNAPSHOT = "__ui_snapshot"
CANCEL_JOB_GROUP = "__cancel_job_group"


class Mine(UIWorker, JobsMixin):
    @tool
    async def answer(self, params: Any, text: str) -> None:
        """Answer the job.

        Args:
            params: Pipecat's.
            text: The answer.
        """
        await self.respond_to_job(text)
        await params.result_callback(None)


MakeUI = Callable[..., Any]


@pytest.fixture
async def make() -> AsyncIterator[MakeUI]:
    """Makes a UI worker; it has to be a test's first fixture, to close its connections last."""
    async with llm_services() as new_llm:

        def make(worker_class: type = Mine, base_url: str = "http://127.0.0.1:1/v1") -> Any:
            return worker_class("ui", llm=new_llm(base_url))

        yield make


def cards(bus: ChaosBus) -> list[tuple[Any, ...]]:
    """The card events that the client got, in order and shortened."""
    shown: list[tuple[Any, ...]] = []
    for message in bus.sent:
        match message:
            case BusUIJobGroupStartedMessage():
                shown.append(("started", *message.workers))
            case BusUIJobUpdateMessage():
                shown.append(("update", message.worker_name, message.data))
            case BusUIJobCompletedMessage():
                shown.append(("completed", message.worker_name, message.status, message.response))
            case BusUIJobGroupCompletedMessage():
                shown.append(("closed",))
    return shown


async def client_sends(worker: Any, event: str, payload: Any) -> None:
    """Send the bus message that Pipecat makes of a client's message."""
    await worker.send_bus_message(
        BusUIEventMessage(source="client", target=None, event_name=event, payload=payload)
    )
