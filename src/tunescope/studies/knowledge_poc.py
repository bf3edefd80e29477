"""Knowledge in a proof of concept: the base before tuning, and the best tuned arm after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope.config import Config
from tunescope.runs.records import Result
from tunescope.studies.bench import TUNED, Bench
from tunescope.studies.knowledge import FOUND, check_asked, facts_of, write_questions
from tunescope.studies.knowledge_after import after
from tunescope.studies.knowledge_inputs import Asked, read_asked
from tunescope.studies.knowledge_probe import ask_few_shot, before
from tunescope.studies.machine import release_memory
from tunescope.studies.progress import Progress
from tunescope.studies.setup import Checked


def check_knowledge(config: Config, checked: Checked) -> None:
    """Refuses questions that cannot be asked, before anything is written; does nothing without ``knowledge.questions``.

    Raises:
        TunescopeError: see `read_asked` and `check_asked`.
    """
    if config.knowledge.questions:
        check_asked(config, read_asked(config), checked.loaded, checked.chat)


def probe_knowledge(bench: Bench, recommended: str | None, progress: Progress) -> None:
    """Writes ``knowledge.json``: the probe of the base, and what the best tuned arm did; does nothing without ``knowledge.questions``.

    Args:
        bench: what all arms share.
        recommended: the arm of the verdict; where it is not tuned, or there is none, the tuned arm with the highest in-domain score.
        progress: told about every question.
    """
    if not bench.config.knowledge.questions or bench.run.has(FOUND):
        return
    bench.run.set_status("running", stage="knowledge")
    asked: Asked = read_asked(bench.config)
    write_questions(bench.run, asked)
    loaded = bench.load()
    base = ask_few_shot(bench, loaded.model, asked, progress)
    found: dict[str, Any] = {"before": before(bench.config, asked, base), "asked": facts_of(asked)}
    arm = recommended if recommended in TUNED else best_tuned(_results(bench))
    if arm is not None:
        found["after"] = after(bench, loaded, asked, base, bench.run.path / "weights" / arm, progress) | {"arm": arm}
    bench.run.write_json(FOUND, found)
    release_memory()


def best_tuned(results: Sequence[Result]) -> str | None:
    """Returns the tuned arm with the highest mean in-domain score over tasks; None without one.

    Example:
        >>> rows = [Result(arm, "t", "in_domain", "accuracy", score, 0, 1, 9) for arm, score in (("random", 0.6), ("full", 0.7))]
        >>> best_tuned(rows)
        'full'
    """
    mine = [row for row in results if row.arm in TUNED and row.role == "in_domain"]
    over_all = [row for row in mine if row.task == "*"] or mine
    return max(over_all, key=lambda row: row.value).arm if over_all else None


def _results(bench: Bench) -> list[Result]:
    return [Result.from_dict(row) for row in bench.run.read_json("results.json")["results"]]
