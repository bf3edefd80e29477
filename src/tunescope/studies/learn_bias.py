"""Whether what is repeated, and what is kept, looks like what it was chosen from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tunescope import replay
from tunescope.data import Example, Task


def bias_rows(
    pool: Sequence[Example], kept: Collection[tuple[str, str]], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    """Returns the bias table of a choice: task, label, language, length, and the attributes that the tasks keep with their examples.

    Labels are compared inside their task, so that a policy that repeats one task more does not show as a shift of its labels.

    Args:
        pool: all examples there were to choose from.
        kept: task and id of those chosen.
        tasks: their tasks; a task with labels has one more attribute, the label.
    """
    if not pool:
        return []
    labelled = {task.name: set(task.labels or ()) for task in tasks}
    attributes: dict[str, list[str]] = {
        "task": [e.task for e in pool],
        "language": [replay.language(e.prompt_text) for e in pool],
        "length": [replay.length_bin(len(e.prompt_text)) for e in pool],
    }
    within = {}
    if any(e.targets[0] in labelled.get(e.task, ()) for e in pool):
        attributes["label"] = [e.targets[0] if e.targets[0] in labelled.get(e.task, ()) else "" for e in pool]
        within["label"] = attributes["task"]
    for name in dict.fromkeys(name for e in pool for name in e.attributes):
        if name in attributes:  # an attribute of that name is told by the user: it counts, not the guess
            attributes[name] = [e.attributes.get(name, guess) for e, guess in zip(pool, attributes[name], strict=True)]
        else:
            attributes[name] = [e.attributes.get(name, "") for e in pool]
    rows = replay.bias_table(attributes, [(e.task, e.id) in kept for e in pool], within=within)
    return [row.to_dict() for row in rows if row.value]
