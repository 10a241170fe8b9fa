"""The methods by which a requester and a worker talk about an open job."""

from typing import Any, TypeVar, overload

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._executor.questions import Questions
from pipecat_jobs._requester.requester import Requester
from pipecat_jobs.errors import InvalidJobTypeError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.params import check_data
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.steering import JobSteer, SteerOutcome

Answer = TypeVar("Answer")


class Exchanging(BaseWorker):
    """The part of :class:`~pipecat_jobs.JobsMixin` for what is said about an open job."""

    _job_requester: Requester
    _job_questions: Questions

    async def steer(
        self, job_id: str, data: JobData, *, worker_name: str | None = None
    ) -> SteerOutcome:
        """Tell the worker of an open job something more, and wait until it has taken that or not.

        A job that waits for its worker, its key or a slot takes it once its handler has begun. With
        ``retry`` and ``hedge_after``, the attempts that begin later get it too.

        Args:
            job_id: The id of a job of this worker.
            data: What to tell, a dict, e.g. ``{"also": "check the brakes"}``.
            worker_name: The worker to tell, if the job is of several; None if it is of one.

        Returns:
            What became of it: accepted, refused with a reason (also by a worker that takes no
            steers, a plain Pipecat worker, and on a bus that cannot carry it), or over, if the job
            ended first.

        Raises:
            UnknownJobError: If this worker has not requested a job of this id.
            InvalidJobTypeError: If the data is not a dict.
            InvalidJobError: If ``worker_name`` is missing or not of the job.

        Example::

            job_id = await self.request_job("worker", payload={"car": "B-PC 114"})
            outcome = await self.steer(job_id, {"also": "check the brakes"})
            if not outcome.accepted:
                print(f"{outcome.worker} does not check the brakes: {outcome.reason}")
        """
        given = check_data("data", data)
        if given is None:
            raise InvalidJobTypeError("data is None; give a dict, e.g. {'also': ...}")
        return await self._job_requester.steer(job_id, given, worker_name)

    async def on_job_steered(self, steer: JobSteer) -> None:
        """Take a steer of a job of this worker; override it for handlers without ``job_steers()``.

        It runs in a task of its own, one steer of a job after the other. The steer is accepted when
        it returns, and refused when it raises. Without an override it refuses every steer.

        Args:
            steer: The steer: ``data`` has what the requester gave, ``refuse()`` refuses it.

        Example::

            class Mechanic(BaseWorker):
                async def on_job_request(self, message):
                    self.to_do = [message.payload["part"]]

                async def on_job_steered(self, steer):
                    if "also" not in steer.data:
                        steer.refuse("say which part with 'also'")
                    else:
                        self.to_do.append(steer.data["also"])
        """
        steer.refuse(
            f"worker '{self.name}' ({type(self).__name__}) takes no steers now: its handler has "
            "not called job_steers(), and the class has no on_job_steered(); write one of them"
        )

    @overload
    async def ask_requester(self, text: str, *, timeout: float | None = None) -> str: ...

    @overload
    async def ask_requester(
        self, text: str, answer_type: type[Answer], *, timeout: float | None = None
    ) -> Answer: ...

    @overload
    async def ask_requester(
        self, text: str, answer_type: Any, *, timeout: float | None = None
    ) -> Any: ...

    async def ask_requester(
        self, text: str, answer_type: Any = str, *, timeout: float | None = None
    ) -> Any:
        """Ask the requester of the running job a question, and wait for the answer.

        Call it in a handler, or in code that a handler has started. Meanwhile the job is
        ``OpenJobState.WAITING_FOR_INPUT``. An answer that does not fit the type makes it ask again,
        with the problem. When the job is cancelled, or its deadline passes, the wait ends with it.

        Args:
            text: The question, for people.
            answer_type: The type of the answer: any type that pydantic can validate, e.g. ``str``,
                ``bool``, ``Literal["aisle", "window"]`` or a model.
            timeout: Seconds until the answer, all attempts included; None for as long as the job.

        Returns:
            The answer, as a value of the type.

        Raises:
            JobQuestionError: If there is no answer: it was refused, did not come in time, never
                fitted, or the requester cannot answer.
            InvalidJobError: If it is called outside of an open job of this worker, or an argument
                cannot be used.

        Example::

            class Desk(BaseWorker):
                @job(name="book")
                async def book(self, message):
                    wanted = Literal["aisle", "window"]
                    seat = await self.ask_requester("Aisle or window?", wanted, timeout=30)
                    if not await self.ask_requester("Charge 40 euros?", bool, timeout=30):
                        raise JobToolError("the user does not pay")
                    return {"seat": seat}
        """
        return await self._job_questions.ask(text, answer_type, timeout)

    async def on_job_question(self, question: JobQuestion) -> object:
        """Answer a question of the worker of a job that this worker has requested; override it.

        It runs in a task of its own, which is cancelled when the question closes unanswered.
        Without an override, a question about a job that was requested in the handler of another job
        goes to the requester of that one, and any other question is refused.

        Args:
            question: The question.

        Returns:
            The answer, or None to answer later with ``question.answer()``, also if the answer is
            None itself.

        Example::

            class Host(BaseWorker):
                async def on_job_question(self, question):
                    return "window" if "window" in question.text else None
        """
        outer = self._find_outer_job(question)
        if outer is not None:
            await self._job_questions.pass_on(outer, question)
        else:
            await question.refuse(
                f"worker '{self.name}' ({type(self).__name__}) answers no questions; write "
                "on_job_question() in its class"
            )
        return None

    def _find_outer_job(self, question: JobQuestion) -> Execution | None:
        """Find the open job of this worker in whose handler the job of a question was requested."""
        outer = self._job_requester.find_outer_job(question.job_id)
        return outer if isinstance(outer, Execution) and not outer.ended else None
