"""How an arm is asked: every answer is noted as it comes, and after a kill only what is missing is asked again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tunescope import evaluate
from tunescope.config import Config
from tunescope.data import ChatFormat, Example
from tunescope.errors import IntegrityError
from tunescope.runs.records import Answer
from tunescope.studies.bench import Bench
from tunescope.studies.demonstrations import at_test
from tunescope.studies.progress import Progress, ticker
from tunescope.studies.serving import Server, server_of


class Asker:
    """Asks one arm; its answers stand in ``arms/<arm>/asked.jsonl``, a row for those that came together, until all of them are there.

    What is asked, and in which order, follows from settings and data, which a resume compares; so a question is known by its place.

    Args:
        bench: what all arms share.
        arm: name of the arm.
        model: the model of the arm here.
        progress: told about every answer; one that is read back counts at once.

    Attributes:
        server: who answers in words for the arm; None: the model here.
        seconds_before: what the answers that were read back took.

    Raises:
        IntegrityError: the noted answers are damaged.
    """

    def __init__(self, bench: Bench, arm: str, model: Any, progress: Progress) -> None:
        self.server: Server | None = server_of(bench.config, arm)
        self._bench, self._arm, self._model, self._progress = bench, arm, model, progress
        self._name = f"arms/{arm}/asked.jsonl"
        self._calls = 0
        rows = bench.run.read_jsonl(self._name)
        try:
            self.seconds_before = float(sum(row["seconds"] for row in rows))
            self._known: dict[int, dict[int, Answer]] = {}
            for row in rows:
                found = self._known.setdefault(row["call"], {})
                found |= {index: Answer.from_dict(given) for index, given in row["answers"]}
        except (KeyError, TypeError, ValueError, AttributeError):
            path = bench.run.path / self._name
            raise IntegrityError(f"{path}: damaged; remove it, what it holds is asked again") from None

    def ask(self, task: str, examples: Sequence[Example]) -> list[Answer]:
        """Returns the answers to examples of a task, in their order.

        Raises:
            ModelError: a server cannot be reached, refuses, or answers nonsense.
        """
        call, self._calls = self._calls, self._calls + 1
        known = self._known.get(call, {})
        if known:
            self._progress.advance(len(known))
        tick, started = ticker(self._progress), time.perf_counter()
        (self._bench.run.path / self._name).parent.mkdir(parents=True, exist_ok=True)
        for batch in self._batches(task, examples, dict(known)):
            now = time.perf_counter()
            answers = [(index, given.to_dict()) for index, given in batch]
            row = {"call": call, "seconds": now - started, "answers": answers}
            self._bench.run.append_jsonl(self._name, [row])
            known |= dict(batch)
            started = now
            tick(len(batch))
        return [known[i] for i in range(len(examples))]

    def close(self) -> None:
        """Removes the notes, once everything stands elsewhere."""
        (self._bench.run.path / self._name).unlink(missing_ok=True)

    def _batches(self, task: str, examples: Sequence[Example], known: dict[int, Answer]) -> Iterator[evaluate.Batch]:
        how, chat = answering(self._bench, task, self._arm), self._bench.chat
        if self.server is not None and how.labels is None:
            return self.server.batches(chat, examples, how, known)
        return evaluate.answer_batches(self._model, chat, examples, how, known=known)


def answering(bench: Bench, task_name: str, arm: str) -> evaluate.Answering:
    """Returns how an arm answers a task."""
    task = next(t for t in bench.inputs.tasks if t.name == task_name)
    settings = bench.config.evaluation
    return evaluate.Answering(
        task.metric,
        task.labels,
        at_test(bench.config, task, arm),
        other_labels={label for t in bench.inputs.tasks if t.name != task_name for label in t.labels or ()},
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        stop=settings.task_stop.get(task_name, settings.stop),
    )


def unfit_stops(config: Config, chat: ChatFormat) -> list[str]:
    """Returns what is wrong with stop strings: one with a control token in it would never be found in an answer's text."""
    settings = config.evaluation
    places = {"evaluation.stop": settings.stop}
    places |= {f"evaluation.task_stop.{task}": stops for task, stops in settings.task_stop.items()}
    return [
        f"{place}: {stop!r} holds {marker!r}, a control token of this model, which is in no answer's text; leave it out: the end of the turn "
        "needs no stop string"
        for place, stops in places.items()
        for stop in stops
        if (marker := chat.control_token_in(stop))
    ]
