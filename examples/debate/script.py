"""The LLM without an API key: a scripted server that can debate any topic."""

import json
import re

from examples.debate.workers import DEBATERS
from pipecat_jobs.testing import Failure, LLMRequest, Reply, ScriptedLLMServer, Text, ToolCall
from pipecat_jobs.testing.llm_script import ToolCalls

FIRST_TOPIC = "Should AI be regulated?"

#: Seconds until each speaker starts, and seconds from one word to the next.
_RHYTHM = {
    "advocate": (0.5, 0.052),
    "critic": (0.8, 0.058),
    "analyst": (1.1, 0.048),
    "moderator": (0.3, 0.045),
}

_ON_AI = {
    "advocate": """\
Yes, because trust needs rules that everyone can read. A technology that decides who gets a \
loan, a job or a diagnosis is too important for the goodwill of its makers. We did not leave \
medicines or aeroplanes to it, and both industries grew because people trusted them. Clear law \
protects the honest builder too: no rival can win by skipping the safety tests. Nor must it be \
heavy. Ask most of the few systems that can do most harm, and leave the spelling checkers alone. \
Those who wait for proof of disaster will get it. I would rather fit the brakes while the car is \
still in the garage.""",
    "critic": """\
Not like this, because rules protect whoever is already big. A giant hires two hundred \
compliance lawyers and calls it a moat; a student with a better idea gives up at page forty. \
What is written today describes the models of last year. Fraud, discrimination and negligence \
are illegal already, whether a person commits them or a program does. Enforce those laws, and \
you reach the harm without licensing mathematics. And rules stop at borders, while models do \
not: regulate alone, and you import the same systems from places that never asked for your \
opinion.""",
    "analyst": """\
Regulate what it is used for, and count what goes wrong. The record is short, but it says \
something. Privacy law in Europe cost small firms more than large ones, and still became the \
standard that others copied. Aviation shows that reporting every incident in public prevents \
more accidents than approving every part beforehand. For AI we lack that very thing: nobody \
counts failures in a common way. So the first rule with a measurable return is the dull one, a \
duty to report. After two years of numbers, either of my colleagues can be shown wrong.""",
}

_ON_ANYTHING = {
    "advocate": """\
Yes, because waiting has a price as well. On “{topic}” somebody already pays for the way things \
are, and it is rarely those who decide. Begin early, and you learn while mistakes are cheap: you \
keep what works and drop the rest. Those who waited out earlier changes of this size were not \
spared the bill; they paid it later, with interest, and had no say in the terms. Most fears \
about it are fears of doing it badly, which is an argument for doing it well. Start small, \
publish the results, and let anyone check them. A year from now the question will sound quaint.""",
    "critic": """\
No, because the bill has been left out. “{topic}” sounds simple only until you ask who pays. The \
gains are counted today, in a brochure; the costs arrive later, at the door of people who are \
not in this room. Whoever stands to earn from a yes should not be the only one to do the sums. I \
have also heard the words “start small” before: small things grow, and nobody remembers who \
agreed to the large one. There is a humbler way, which is to repair what we have and see how \
much of the problem is left. Usually it is very little.""",
    "analyst": """\
It depends on how it is done, more than on whether. The evidence on “{topic}” is thinner than \
either side admits. Early adopters report gains, and early adopters are not like the rest of us. \
Where somebody did compare similar groups, the effect was real, about half as large as promised, \
and slow to arrive. The costs were real as well, and fell on a few. That makes it less a matter \
of principle than of design: who decides, who pays, and what would make us stop. Write those \
three down, agree on a number that settles it, and try it for a year.""",
}


def write_script(server: ScriptedLLMServer, *, tempo: float = 1.0) -> None:
    """Set the answers of a server for the debate.

    Args:
        server: The scripted server.
        tempo: The factor of every pause; 1.0 is the pace of people.
    """

    def text(name: str, words: str) -> Text:
        first, pace = _RHYTHM[name]
        return Text(words, pace=pace * tempo, first_token_after=first * tempo)

    def moderate(request: LLMRequest) -> Reply:
        if not request.last_user_text:
            return text("moderator", "Hello! Which topic shall we debate?")
        arguments = _arguments(request)
        if arguments is not None:
            return text("moderator", _summary(_topic(request.last_user_text), arguments))
        call = ToolCall("debate", {"topic": _topic(request.last_user_text)})
        return ToolCalls(call, text=text("moderator", "Let us hear three sides of that."))

    def argue(name: str, request: LLMRequest) -> Reply:
        topic = request.last_user_text.removeprefix("Topic: ")
        if f"without the {name}" in topic:
            return Failure(503, f"the {name} is out of order")
        script = _ON_AI if topic == FIRST_TOPIC else _ON_ANYTHING
        return text(name, script[name].format(topic=topic))

    server.on(lambda request: "debate" in request.tools, moderate)
    for name, instruction in DEBATERS.items():
        server.on(instruction, lambda request, name=name: argue(name, request))


def _topic(said: str) -> str:
    """Find the topic in the user's text."""
    asked = re.sub(
        r"^(please|now|ok(ay)?|and|let'?s|let us|can you|could you|debate|discuss|argue|"
        r"talk|about|whether|what about|how about|on)\b[\s,:]*",
        "",
        said.strip(),
        flags=re.IGNORECASE,
    )
    if asked and asked != said:
        return _topic(asked)
    return said[:1].upper() + said[1:]


def _arguments(request: LLMRequest) -> dict[str, str] | None:
    """Find the debaters' texts since the user last spoke, if the debate tool has returned."""
    for message in reversed(request.messages):
        match message:
            case {"role": "user"}:
                return None
            case {"role": "tool", "content": str(result)} if result.startswith("{"):
                said = json.loads(result)
                answers = {name: answer["text"] for name, answer in said["answers"].items()}
                return answers | dict.fromkeys(said.get("missing", ()), "")
    return None


def _summary(topic: str, arguments: dict[str, str]) -> str:
    sentences = [f"On “{topic}” here is what I heard."]
    for name, argument in arguments.items():
        claim = re.split(r"(?<=[.!?])\s", argument)[0]
        sentences.append(f"The {name}: “{claim}”" if claim else f"The {name} had no answer.")
    sentences.append(
        "They part over who bears the cost of being wrong: those who move first, or those who "
        "wait. Settle that, and the rest is detail."
    )
    return " ".join(sentences)
