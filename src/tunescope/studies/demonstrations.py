"""From settings to the finished examples before a prompt: in tuning, at test, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunescope.config import Arm, Config, DemonstrationSettings
from tunescope.data import ChatFormat, Demonstrations, Encoded, Example, Task
from tunescope.errors import DataError
from tunescope.runs.records import Finding

Shown = Callable[[Example], Sequence[Example]]


def demonstrations(task: Task, count: int) -> tuple[Example, ...]:
    """Returns the first `count` training examples, going round the labels so that each is shown before one is shown twice."""
    if task.labels is None:
        return task.train[:count]
    by_label = {label: [e for e in task.train if e.targets[0] == label] for label in task.labels}
    longest = max((len(found) for found in by_label.values()), default=0)
    rounds = [found[i] for i in range(longest) for found in by_label.values() if i < len(found)]
    return tuple(rounds[:count])


def settings_of(config: Config, task_name: str) -> DemonstrationSettings | None:
    """Returns the demonstrations that the settings ask for in a task, or None; a study may make tasks that the settings do not know."""
    return next((task.demonstrations for task in config.tasks if task.name == task_name), None)


def shown_at(config: Config, task_name: str, place: str) -> bool:
    """Whether the settings ask for demonstrations in a task at a place: ``train`` or ``test``."""
    wanted = settings_of(config, task_name)
    return wanted is not None and place in wanted.at


def in_training(config: Config, tasks: Sequence[Task]) -> Shown:
    """Returns what stands before a training or held-out prompt: nothing in tasks that ask for nothing.

    What is returned raises DataError where a task has too few examples for its demonstrations, or one gives an answer away.
    """
    by_name = {task.name: task for task in tasks if shown_at(config, task.name, "train")}
    choosers: dict[str, Demonstrations] = {}

    def shown(example: Example) -> Sequence[Example]:
        if example.task not in by_name:
            return ()
        if example.task not in choosers:
            choosers[example.task] = _chooser(config, by_name[example.task], example.file)
        return choosers[example.task](example)

    return shown


def at_test(config: Config, task: Task, arm: str) -> Shown:
    """Returns what stands before a test prompt: nothing in the arm `nothing`, which says what the model does as it is.

    In the other arms it is what the task's `demonstrations` ask for; where they ask for nothing at test, the arm `prompt` shows
    ``evaluation.demonstrations`` training examples, and the others nothing.

    What is returned raises DataError where the task has too few examples for its demonstrations, or one gives an answer away.
    """
    if arm == Arm.NOTHING or (arm != Arm.PROMPT and not shown_at(config, task.name, "test")):
        return lambda example: ()
    if not shown_at(config, task.name, "test"):
        fixed = demonstrations(task, config.evaluation.demonstrations)
        return lambda example: fixed
    choosers: dict[str, Demonstrations] = {}

    def shown(example: Example) -> Sequence[Example]:
        if example.file not in choosers:
            choosers[example.file] = _chooser(config, task, example.file)
        return choosers[example.file](example)

    return shown


def encode_training(
    config: Config, tasks: Sequence[Task], chat: ChatFormat, examples: Sequence[Example]
) -> list[Encoded]:
    """Encodes training or held-out examples with the demonstrations before them; only the answer has a loss."""
    shown = in_training(config, tasks)
    return [chat.encode(example, demonstrations=shown(example)) for example in examples]


def unfit(config: Config, tasks: Sequence[Task], chat: ChatFormat) -> list[Finding]:
    """Returns what is wrong with the demonstrations of the tasks: too few, given away, or more than fit ``data.max_length``."""
    findings: list[Finding] = []
    for task in tasks:
        if shown_at(config, task.name, "train"):
            rows = (*task.train, *task.validation)
            findings += _unfit_at(config, "train", rows, in_training(config, tasks), chat)
        if shown_at(config, task.name, "test"):
            rows = (*task.test, *sum(task.out_of_domain.values(), ()))
            findings += _unfit_at(config, "test", rows, at_test(config, task, Arm.PROMPT), chat)
    return findings


def _chooser(config: Config, task: Task, file: str) -> Demonstrations:
    """The chooser for the examples of a file: the rows set aside of it, or all training examples."""
    wanted = settings_of(config, task.name)
    assert wanted is not None
    pool = task.set_aside.get(file, ()) if wanted.choice == "first" else task.train
    try:
        return Demonstrations(pool, wanted.count, choice=wanted.choice, seed=config.seed)
    except DataError as error:
        whose = "the first rows of the file" if wanted.choice == "first" else "the training examples of the task"
        raise DataError([f"{problem} (they come from {whose})" for problem in error.problems]) from None


def _unfit_at(config: Config, place: str, examples: Sequence[Example], shown: Shown, chat: ChatFormat) -> list[Finding]:
    """What is wrong at one place; the same problem of many rows is named once."""
    found: dict[str, Finding] = {}
    rows: list[tuple[Example, Sequence[Example]]] = []
    for example in examples:
        try:
            rows.append((example, shown(example)))
        except DataError as error:
            text = str(error).removeprefix(f"{example.file}:{example.line}: ")
            finding = Finding("demonstrations_unfit", "error", example.file, example.line, text, example.task)
            found.setdefault(text, finding)
    return list(found.values()) if found else _too_long(config, place, rows, chat)


def _too_long(
    config: Config, place: str, rows: Sequence[tuple[Example, Sequence[Example]]], chat: ChatFormat
) -> list[Finding]:
    """One finding if prompts with their demonstrations, answer included, are too long: by how much, and how many would fit."""
    limit = config.data.max_length
    lengths = [len(chat.encode(example, demonstrations=shown)) for example, shown in rows]
    long = [i for i, length in enumerate(lengths) if length > limit]
    if not long:
        return []
    worst = max(long, key=lengths.__getitem__)
    example, count = rows[worst][0], len(rows[worst][1])

    def fits(n: int) -> bool:
        return all(len(chat.encode(e, demonstrations=shown[:n])) <= limit for e, shown in (rows[i] for i in long))

    fitting = next((n for n in range(count - 1, 0, -1) if fits(n)), 0)
    advice = f"lower demonstrations.count to {fitting}" if fitting else "not even one fits: shorten the rows"
    text = (
        f"with {count} demonstrations (at {place}) this row has {lengths[worst]} tokens, answer included; it and {len(long) - 1} others of "
        f"{len(rows)} are over the {limit} of data.max_length; {advice}, or raise data.max_length"
    )
    return [Finding("demonstrations_unfit", "error", example.file, example.line, text, example.task)]
