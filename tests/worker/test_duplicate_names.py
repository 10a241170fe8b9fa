"""Two workers of one name: the second gets an error wherever this package can notice it."""

import pytest
from pipecat.utils.asyncio.task_manager import TaskManager
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support.workers import Requester, Responder

from pipecat_jobs import BaseWorker, DuplicateWorkerError, NoJobHandlerError, WorkerNotAddedError
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.bus.redis import RedisStreamsBus
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Parent(BaseWorker):
    pass


class Other(BaseWorker):
    pass


@pytest.mark.parametrize("worker_class", [Other, PlainWorker])
async def test_a_child_with_the_name_of_another_worker_is_refused(
    job_harness: JobHarness, worker_class: type[PlainWorker]
):
    parent, requester = Parent("parent"), Requester()
    await job_harness.start(parent, requester)
    with pytest.raises(DuplicateWorkerError, match="another worker named 'requester'") as caught:
        await parent.add_workers(Other("child"), worker_class("requester"))
    assert caught.value.worker == "requester"
    assert parent.children == []


async def test_two_children_with_the_same_name_are_refused(job_harness: JobHarness):
    parent = Parent("parent")
    await job_harness.start(parent)
    with pytest.raises(DuplicateWorkerError):
        await parent.add_workers(Other("child"), Other("child"))
    child = Other("child")
    await parent.add_workers(child)
    with pytest.raises(DuplicateWorkerError):
        await parent.add_workers(Other("child"))
    assert parent.children == [child]


async def test_a_parent_without_a_runner_may_add_children():
    parent, child = Parent("parent"), Other("child")
    await parent.add_workers(child)
    assert parent.children == [child]


async def test_the_second_worker_of_a_name_cannot_ask_and_the_error_says_why(
    job_harness: JobHarness, job_log
):
    await job_harness.start(Requester(), Responder())
    second = Requester()
    await job_harness.runner.add_workers(second)
    # Pipecat's runner refuses a second worker of a name, and logs it.
    assert any("'requester' already exists" in r.message for r in job_log if r.level == "ERROR")
    with pytest.raises(WorkerNotAddedError, match="skips the second worker of a name"):
        await second.ask("responder", "echo", timeout=20)


async def test_a_job_that_only_the_second_worker_could_do_names_the_class_of_the_first(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Other("responder"))
    await job_harness.runner.add_workers(Responder())
    with pytest.raises(NoJobHandlerError, match=r"'responder' \(Other\) has no handler"):
        await requester.ask("responder", "echo", timeout=20)


@pytest.mark.parametrize("bus_class", [RoutedBus, RedisStreamsBus])
async def test_the_second_subscriber_of_a_name_is_logged_as_an_error(
    bus_class: type[RoutedBus], job_log
):
    bus, first = bus_class(), Requester()
    await bus.setup(TaskManager())
    await bus.subscribe(first)
    await bus.subscribe(first)
    assert [r.message for r in job_log if r.level == "ERROR"] == []
    await bus.subscribe(Requester())
    [error] = [r.message for r in job_log if r.level == "ERROR"]
    assert "'requester' is subscribed already" in error
    assert "give each worker a name of its own" in error
