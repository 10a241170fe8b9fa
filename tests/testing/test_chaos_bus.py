import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from pipecat.bus import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobUpdateMessage,
    BusMessage,
    BusSubscriber,
    BusWorkerLocalErrorMessage,
    BusWorkerReadyMessage,
)
from pipecat.pipeline.job_context import JobStatus
from pipecat.utils.asyncio.task_manager import TaskManager

from pipecat_jobs.testing.chaos_bus import ChaosBus, Faults
from pipecat_jobs.testing.virtual_time import run_virtual


class Listener(BusSubscriber):
    def __init__(self, name: str = "listener"):
        self._name = name
        self.heard: asyncio.Queue[BusMessage] = asyncio.Queue()

    @property
    def name(self) -> str:
        return self._name

    async def on_bus_message(self, message: BusMessage) -> None:
        self.heard.put_nowait(message)


def request(job_id: str = "1", target: str = "worker") -> BusJobRequestMessage:
    return BusJobRequestMessage(
        source="requester", target=target, job_id=job_id, payload={"list": [job_id]}
    )


def update(job_id: str = "1") -> BusJobUpdateMessage:
    return BusJobUpdateMessage(source="worker", target="requester", job_id=job_id)


def response(job_id: str = "1") -> BusJobResponseMessage:
    return BusJobResponseMessage(
        source="worker", target="requester", job_id=job_id, status=JobStatus.COMPLETED
    )


def ready() -> BusWorkerReadyMessage:
    return BusWorkerReadyMessage(source="worker", runner="runner")


@pytest_asyncio.fixture
async def bus() -> AsyncIterator[ChaosBus]:
    bus = ChaosBus()
    await bus.setup(TaskManager())
    await bus.start()
    yield bus
    await bus.stop()


async def test_without_rules_it_delivers_at_once_and_in_order(bus: ChaosBus):
    listener = Listener()
    await bus.subscribe(listener)
    messages = [request(str(number)) for number in range(5)]
    for message in messages:
        await bus.send(message)
    assert bus.sent == bus.delivered == messages
    assert [await listener.heard.get() for _ in messages] == messages
    assert bus.dropped == []


async def test_a_dropped_message_is_never_delivered(bus: ChaosBus):
    bus.drop(BusJobResponseMessage)
    lost, passed = response(), update()
    await bus.send(lost)
    await bus.send(passed)
    assert bus.sent == [lost, passed]
    assert bus.delivered == [passed]
    assert bus.dropped == [lost]


async def test_a_count_limits_how_many_messages_a_rule_applies_to(bus: ChaosBus):
    rule = bus.drop((BusJobResponseMessage, BusJobUpdateMessage), count=2)
    messages = [response(), update(), update()]
    for message in messages:
        await bus.send(message)
    assert bus.dropped == messages[:2]
    assert bus.delivered == messages[2:]
    assert not rule.live


async def test_a_predicate_chooses_messages(bus: ChaosBus):
    bus.drop(lambda message: message.target == "elsewhere")
    await bus.send(request(target="elsewhere"))
    await bus.send(request(target="here"))
    assert [message.target for message in bus.delivered] == ["here"]


async def test_a_removed_rule_no_longer_applies(bus: ChaosBus):
    rule = bus.drop(BusMessage)
    rule.remove()
    message = request()
    await bus.send(message)
    assert bus.delivered == [message]


async def test_the_rule_added_first_applies(bus: ChaosBus):
    first, second = bus.hold(BusJobRequestMessage), bus.hold(BusJobRequestMessage)
    await bus.send(request())
    assert len(first.messages) == 1
    assert second.messages == []


async def test_a_duplicate_is_a_distinct_equal_message(bus: ChaosBus):
    bus.duplicate(BusJobRequestMessage, times=2)
    message = request()
    await bus.send(message)
    assert bus.sent == [message]
    assert bus.delivered == [message, message, message]
    assert len({id(each) for each in bus.delivered}) == 3
    first, second, _ = bus.delivered
    assert isinstance(first, BusJobRequestMessage)
    assert isinstance(second, BusJobRequestMessage)
    assert first.payload is not second.payload


async def test_copies_are_held_one_by_one(bus: ChaosBus):
    bus.duplicate(BusJobRequestMessage)
    held = bus.hold(BusJobRequestMessage)
    await bus.send(request())
    assert len(held.messages) == 2
    held.release_one()
    assert len(bus.delivered) == 1


async def test_held_messages_wait_for_their_release_and_others_overtake(bus: ChaosBus):
    held = bus.hold(BusJobUpdateMessage)
    first, second, reply = update(), update(), response()
    for message in (first, second, reply):
        await bus.send(message)
    assert bus.delivered == [reply]
    assert held.messages == [first, second]

    assert held.release_one() is first
    assert bus.delivered == [reply, first]
    held.release()
    assert bus.delivered == [reply, first, second]

    late = update()
    await bus.send(late)
    assert bus.delivered[-1] is late


async def test_waiting_for_held_messages_ends_when_enough_are_held(bus: ChaosBus):
    held = bus.hold(BusJobRequestMessage)
    waiting = asyncio.create_task(held.wait(2))
    first, second = request("1"), request("2")
    await bus.send(first)
    await asyncio.sleep(0)
    assert not waiting.done()
    await bus.send(second)
    assert await waiting == [first, second]
    assert await held.wait() == [first, second]


async def test_releasing_without_a_held_message_is_an_error(bus: ChaosBus):
    with pytest.raises(LookupError, match="no message is held"):
        bus.hold(BusMessage).release_one()


async def test_messages_of_a_removed_hold_are_lost(bus: ChaosBus):
    held = bus.hold(BusJobRequestMessage)
    message = request()
    await bus.send(message)
    held.remove()
    assert bus.dropped == [message]
    assert bus.delivered == []


async def test_a_blocked_publish_returns_only_when_released(bus: ChaosBus):
    block = bus.block_publish(BusJobRequestMessage)
    message = request()
    sending = asyncio.create_task(bus.send(message))
    assert await block.wait() == [message]
    assert bus.sent == [message]
    assert bus.delivered == []
    assert not sending.done()

    block.release()
    await sending
    assert bus.delivered == [message]
    assert block.messages == []


async def test_publishers_are_released_one_by_one(bus: ChaosBus):
    block = bus.block_publish(BusJobRequestMessage)
    first = asyncio.create_task(bus.send(request("1")))
    second = asyncio.create_task(bus.send(request("2")))
    await block.wait(2)
    block.release_one()
    await first
    assert not second.done()
    block.remove()
    await second
    assert len(bus.delivered) == len(bus.dropped) == 1


async def test_a_cancelled_publisher_is_removed_even_if_released_meanwhile(bus: ChaosBus):
    block = bus.block_publish(BusJobRequestMessage)
    gone = asyncio.create_task(bus.send(request("1")))
    stays = asyncio.create_task(bus.send(request("2")))
    await block.wait(2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(block.messages) == 1

    stays.cancel()
    block.release()
    with pytest.raises(asyncio.CancelledError):
        await stays
    assert bus.delivered == []


async def test_clear_ends_every_rule(bus: ChaosBus):
    bus.drop(BusJobUpdateMessage)
    bus.hold(BusJobResponseMessage)
    block = bus.block_publish(BusJobRequestMessage)
    sending = asyncio.create_task(bus.send(request()))
    await block.wait()
    await bus.send(response())
    bus.clear()
    await sending
    assert len(bus.dropped) == 2
    for message in (update(), response(), request()):
        await bus.send(message)
    assert len(bus.delivered) == 3


def test_a_delayed_message_arrives_exactly_that_much_later():
    async def main() -> list[tuple[str, float]]:
        bus, loop = ChaosBus(), asyncio.get_running_loop()
        await bus.setup(TaskManager())
        heard: list[tuple[str, float]] = []

        class Clock(Listener):
            async def on_bus_message(self, message: BusMessage) -> None:
                heard.append((type(message).__name__, loop.time()))

        await bus.subscribe(Clock())
        await bus.start()
        bus.delay(BusJobRequestMessage, 30)
        await bus.send(request())
        await bus.send(update())
        await bus.drain()
        await asyncio.sleep(1)
        await bus.stop()
        return heard

    assert run_virtual(main()) == [("BusJobUpdateMessage", 0.0), ("BusJobRequestMessage", 30.0)]


def test_drain_waits_for_every_delay():
    async def main() -> float:
        bus = ChaosBus()
        bus.delay(BusJobRequestMessage, 1)
        bus.delay(BusJobUpdateMessage, 2)
        await bus.send(update())
        await bus.send(request())
        await bus.drain()
        assert len(bus.delivered) == 2
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 2.0


async def test_stopping_drops_delayed_and_held_messages_and_leaves_no_task():
    before = asyncio.all_tasks()
    bus = ChaosBus()
    await bus.setup(TaskManager())
    await bus.start()
    bus.delay(BusJobRequestMessage, 3600)
    bus.hold(BusJobUpdateMessage)
    block = bus.block_publish(BusJobResponseMessage)
    messages = [request(), update(), response()]
    sending = [asyncio.create_task(bus.send(message)) for message in messages]
    await block.wait()
    draining = asyncio.create_task(bus.drain())
    await asyncio.gather(*sending[:2])

    await bus.stop()
    await asyncio.gather(*sending, draining)
    assert {message.name for message in bus.dropped} == {message.name for message in messages}
    assert bus.delivered == []
    assert asyncio.all_tasks() == before


async def test_wait_for_counts_messages_already_sent(bus: ChaosBus):
    first, second = request("1"), request("2")
    await bus.send(first)
    waiting = asyncio.create_task(bus.wait_for(BusJobRequestMessage, count=2))
    await asyncio.sleep(0)
    await bus.send(update())
    assert not waiting.done()
    await bus.send(second)
    await bus.send(request("3"))
    assert await waiting == [first, second]
    assert await bus.wait_for(BusJobRequestMessage) is first
    assert await bus.wait_for(BusJobRequestMessage, count=1) == [first]
    assert await bus.wait_for(lambda message: message.source == "worker") is bus.sent[1]


async def test_a_cancelled_wait_is_removed(bus: ChaosBus):
    waiting = asyncio.create_task(bus.wait_for(BusJobRequestMessage))
    await asyncio.sleep(0)
    waiting.cancel()
    await bus.send(request())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await bus.send(request())


async def test_without_recording_nothing_is_kept_and_waiting_still_works():
    bus = ChaosBus(record=False)
    bus.drop(BusJobUpdateMessage)
    await bus.send(request("before"))
    waiting = asyncio.create_task(bus.wait_for(BusJobRequestMessage))
    await asyncio.sleep(0)
    await bus.send(update())
    await bus.send(request("after"))
    assert (await waiting).job_id == "after"
    assert bus.sent == bus.delivered == bus.dropped == []


async def test_local_messages_are_never_touched(bus: ChaosBus):
    listener = Listener()
    await bus.subscribe(listener)
    bus.drop(BusMessage)
    message = BusWorkerLocalErrorMessage(source="child", error="broken")
    await bus.send(message)
    assert await listener.heard.get() is message
    assert bus.sent == []


async def test_seeded_faults_do_not_affect_lifecycle_messages():
    bus = ChaosBus(seed=1, faults=Faults(drop=1))
    await bus.send(ready())
    await bus.send(request())
    assert [type(message) for message in bus.delivered] == [BusWorkerReadyMessage]
    assert [type(message) for message in bus.dropped] == [BusJobRequestMessage]


async def test_only_selects_the_messages_that_seeded_faults_affect():
    bus = ChaosBus(seed=1, faults=Faults(drop=1), only=(BusJobUpdateMessage, BusWorkerReadyMessage))
    for message in (ready(), request(), update()):
        await bus.send(message)
    assert [type(message) for message in bus.delivered] == [BusJobRequestMessage]


async def test_seeded_faults_do_not_affect_a_message_with_a_rule():
    bus = ChaosBus(seed=1, faults=Faults(drop=1))
    bus.duplicate(BusJobRequestMessage)
    await bus.send(request())
    assert len(bus.delivered) == 2


FAULTS = Faults(delay=0.4, duplicate=0.3, drop=0.2, slow_publish=0.3, max_delay=5)


def play(seed: int, faults: Faults = FAULTS) -> tuple[list[str], list[str], list[str]]:
    async def main() -> tuple[list[str], list[str], list[str]]:
        bus = ChaosBus(seed=seed, faults=faults)
        senders = (bus.send(request(str(number))) for number in range(30))
        await asyncio.gather(*senders)
        await bus.send(BusJobCancelMessage(source="requester", target="worker", job_id="1"))
        await bus.drain()
        return job_ids(bus.sent), job_ids(bus.delivered), job_ids(bus.dropped)

    return run_virtual(main())


def job_ids(messages: list[BusMessage]) -> list[str]:
    return [f"{type(each).__name__} {getattr(each, 'job_id', '')}" for each in messages]


@pytest.mark.schedules
@given(st.integers())
def test_a_seed_gives_the_same_faults_again_and_every_message_is_accounted_for(seed: int):
    sent, delivered, dropped = play(seed)
    assert play(seed) == (sent, delivered, dropped)
    assert set(delivered) | set(dropped) == set(sent)
    assert not set(delivered) & set(dropped)


def test_seeds_differ_and_every_fault_occurs():
    runs = [play(seed) for seed in range(5)]
    assert len({tuple(delivered) for _, delivered, _ in runs}) == 5
    assert any(len(set(delivered)) < len(delivered) for _, delivered, _ in runs)
    assert any(dropped for _, _, dropped in runs)
    assert any(list(dict.fromkeys(delivered)) != sorted(delivered) for _, delivered, _ in runs)


def test_one_probability_does_not_change_the_other_faults():
    _, delivered, _ = play(3, Faults(delay=0.4, max_delay=5))
    _, with_slow, _ = play(3, Faults(delay=0.4, max_delay=5, drop=0.3))
    assert with_slow == [each for each in delivered if each in with_slow]


def test_a_slow_publish_waits_before_delivery():
    async def main() -> None:
        bus = ChaosBus(seed=1, faults=Faults(slow_publish=1, max_delay=8))
        sending = asyncio.create_task(bus.send(request()))
        await bus.wait_for(BusJobRequestMessage)
        assert bus.delivered == []
        await sending
        assert len(bus.delivered) == 1
        assert 0 < asyncio.get_running_loop().time() <= 8

    run_virtual(main())


@pytest.mark.parametrize(
    "values", [{"delay": 1.5}, {"duplicate": -0.1}, {"drop": 2}, {"slow_publish": 3}]
)
def test_probabilities_outside_0_to_1_are_refused(values: dict[str, float]):
    with pytest.raises(ValueError, match="probability"):
        Faults(**values)


def test_a_negative_delay_is_refused():
    with pytest.raises(ValueError, match="max_delay"):
        Faults(max_delay=-1)


def test_a_seed_without_faults_and_faults_without_a_seed_are_refused():
    with pytest.raises(ValueError, match="go together"):
        ChaosBus(seed=1)
    with pytest.raises(ValueError, match="go together"):
        ChaosBus(faults=Faults(drop=1))
