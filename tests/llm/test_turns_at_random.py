"""Many jobs on one LLM worker; some are cancelled at any point, others fail at the provider."""

import asyncio
import os
import random
from collections import Counter

import pytest
from support.llm_workers import Debater, NewLLM, Requester, SeedDebater, asked, new_llm, start

from pipecat_jobs import JobError
from pipecat_jobs.testing import (
    Disconnect,
    Failure,
    JobHarness,
    LLMRequest,
    Reply,
    ScriptedLLMServer,
    Text,
)
from pipecat_jobs.testing.fixtures import LogRecord

__all__ = ["new_llm"]

JOBS = 40
#: Seconds within which all jobs are requested.
SPELL = 1.0
#: A topic that always gets an answer; after it, no message of the others is under way.
LAST = "the last topic;"
SEED = int(os.environ.get("PIPECAT_JOBS_SEED", "0"))


class Script:
    """A provider with random behaviour: slow answers, errors, no answer, broken connections."""

    def __init__(self, chance: random.Random):
        self._chance = chance

    def __call__(self, request: LLMRequest) -> Reply:
        topic, mood = asked(request)[-1], self._chance.random()
        if topic == LAST:
            return Text(f"about {topic} end")
        if mood < 0.08:
            return Failure(400, "out of order")
        if mood < 0.12:
            return Text("")
        if mood < 0.16:
            return Disconnect(after=f"about {topic}")
        words = "word " * self._chance.randint(0, 20)
        return Text(f"about {topic} {words}end", pace=self._chance.choice([0, 0.001, 0.003]))


async def ask(requester: Requester, topic: str, *, seed_form: bool, chance: random.Random) -> str:
    """Request one job and return how it ended."""
    await asyncio.sleep(SPELL * chance.random())
    asking = asyncio.create_task(requester.ask_seed(topic) if seed_form else requester.ask(topic))
    if chance.random() < 0.4:
        await asyncio.sleep(0.3 * chance.random())
        asking.cancel()
    try:
        text = (await asking)["text"]
    except JobError:
        return "failed"
    except asyncio.CancelledError:
        return "cancelled"
    whole = text.startswith(f"about {topic} ") and text.endswith("end")
    return "answered" if whole else f"{topic} was answered with {text!r}"


@pytest.mark.parametrize("active", [False, True], ids=["inactive", "active"])
@pytest.mark.parametrize("kind", [Debater, SeedDebater])
async def test_every_job_gets_its_own_whole_text_or_none(
    job_harness: JobHarness,
    server: ScriptedLLMServer,
    new_llm: NewLLM,
    kind: type[Debater | SeedDebater],
    active: bool,
    job_log: list[LogRecord],
):
    chance = random.Random(SEED)
    server.on(lambda request: True, Script(chance))
    worker = kind(llm=new_llm("You argue."), active=active)
    requester = await start(job_harness, worker)
    seed_form = kind is SeedDebater

    ends = await asyncio.gather(
        *(
            ask(requester, f"topic {number};", seed_form=seed_form, chance=chance)
            for number in range(JOBS)
        )
    )

    assert set(ends) <= {"answered", "failed", "cancelled"}, f"PIPECAT_JOBS_SEED={SEED}"
    count = Counter(ends)
    assert count["answered"] > JOBS / 4
    # A wrong transition of a turn would raise in an event handler of Pipecat.
    assert not [record for record in job_log if "a turn went from" in f"{record}"]
    if not seed_form:
        await requester.ask(LAST)
        # The context holds each question with its own answer, and nothing else.
        said = [message["content"] for message in worker.context.messages]
        # A cancellation may come after the turn has ended and before its response arrives.
        assert count["answered"] < len(said) / 2 <= count["answered"] + count["cancelled"] + 1
        for question, answer in zip(said[::2], said[1::2], strict=True):
            assert answer.startswith(f"about {question} ")
            assert answer.endswith("end")
