"""How long a knowledge study will take, from a few questions asked on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunescope import engine, evaluate, models
from tunescope.evaluate import FewShot
from tunescope.knowledge import Question
from tunescope.models import Loaded
from tunescope.runs.records import Record
from tunescope.studies.bench import Bench
from tunescope.studies.inputs import encode_all
from tunescope.studies.knowledge_inputs import Asked, form_of, header_of
from tunescope.studies.knowledge_probe import CHUNK, ask_domain
from tunescope.studies.progress import Progress

_TIMED = 12
_BACKWARD = 3  # a step of tuning costs about three forward passes
_GROUP_SHARE = 0.15  # of the train questions, in each group: without a probe nobody knows; said beside the number


@dataclass(frozen=True)
class KnowledgeForecast(Record):
    """What a knowledge study would do and cost.

    Attributes:
        questions: role -> questions that are asked.
        domains: number of domains.
        demonstrations: shown before each question of the probe.
        probe_tokens: tokens that the probe reads, shared prefixes counted once.
        chat_tokens: tokens of all questions in the chat format, once.
        sets: sets that are tuned, seeds included; 0 without the intervention study.
        group_size: questions in each set; as set, or assumed, since only the probe can tell.
        tuning_tokens: tokens that one set reads in tuning, all epochs.
        seconds: part of the work -> seconds.
        peak_memory_bytes: resident memory while a few questions were asked.
    """

    questions: dict[str, int]
    domains: int
    demonstrations: int
    probe_tokens: int
    chat_tokens: int
    sets: int
    group_size: int
    tuning_tokens: int
    seconds: dict[str, float]
    peak_memory_bytes: int


def forecast_knowledge(
    bench: Bench, loaded: Loaded, asked: Asked, *, tuned: bool, intervention: bool, progress: Progress
) -> KnowledgeForecast:
    """Asks a few questions with and without demonstrations, and extrapolates by tokens.

    A step of tuning is counted as three forward passes. Explanations, and the tuned model's answers in words, are counted by the steps of
    generation that they take at most.
    """
    config = bench.config
    progress.stage("forecast the cost", 2)
    with engine.Meter(bench.device) as meter:
        per_token = _read_seconds(bench, loaded, asked)
        progress.advance()
        per_step = _step_seconds(bench, loaded, asked)
    progress.advance()
    probe_tokens = sum(_probe_tokens(bench, loaded, asked, domain) for domain in asked.domains)
    chat = {role: _chat_tokens(bench, some) for role, some in asked.questions.items()}
    seconds = {"probe": probe_tokens * per_token}
    if tuned:
        words = config.knowledge.style_prompts * (2 if asked.general else 1)
        seconds["tuned"] = 2 * sum(chat.values()) * per_token
        seconds["words"] = words * config.knowledge.style_tokens * per_step
    sets, size, tuning_tokens = 0, 0, 0
    if intervention:
        settings = config.knowledge.intervention
        sets = (3 + any(q.context for q in asked.questions["homo"]) + len(settings.shares)) * max(
            1, len(settings.seeds)
        )
        n_homo = len(asked.questions["homo"])
        size = settings.group_size or max(1, round(_GROUP_SHARE * n_homo * (1 - settings.test_fraction)))
        size = min(size, len(asked.general))
        tuning_tokens = round(
            config.tuning.num_epochs * size * (_per_question(bench, asked) + _per_general(bench, asked))
        )
        tests = {
            role: _tested(role, n, settings.test_fraction, settings.max_test_questions) for role, n in _counts(asked)
        }
        tested = sum(chat[role] * n / len(asked.questions[role]) for role, n in tests.items())
        seconds["tune"] = sets * tuning_tokens * _BACKWARD * per_token
        seconds["test"] = (sets + 1) * tested * per_token
        if settings.explanations == "auto":
            seconds["explanations"] = 24 * settings.explanation_tokens * per_step
    return KnowledgeForecast(
        questions=dict(_counts(asked)),
        domains=len(asked.domains),
        demonstrations=config.knowledge.demonstrations,
        probe_tokens=probe_tokens,
        chat_tokens=sum(chat.values()),
        sets=sets,
        group_size=size,
        tuning_tokens=tuning_tokens,
        seconds={part: float(f"{spent:.3g}") for part, spent in seconds.items()},
        peak_memory_bytes=meter.peak_memory_bytes,
    )


def _counts(asked: Asked) -> list[tuple[str, int]]:
    return [(role, len(some)) for role, some in asked.questions.items()]


def _tested(role: str, n: int, fraction: float, limit: int | None) -> int:
    held_out = round(n * fraction) if role == "homo" else n
    return held_out if limit is None else min(held_out, limit)


def _read_seconds(bench: Bench, loaded: Loaded, asked: Asked) -> float:
    """Seconds per token, on questions of the largest domain; the first ones warm up."""
    domain = max(asked.domains, key=lambda name: sum(q.domain == name for q in asked.everything))
    some = [q for q in asked.everything if q.domain == domain][:_TIMED]
    form = form_of(bench.config, asked, domain)
    ask_domain(bench, loaded.model, asked, domain, some[:2])
    started = time.perf_counter()
    ask_domain(bench, loaded.model, asked, domain, some)
    return (time.perf_counter() - started) / _tokens(loaded, some, form)


def _step_seconds(bench: Bench, loaded: Loaded, asked: Asked) -> float:
    """Seconds per token written, in a batch of a few."""
    some = asked.everything[:4]
    examples = [evaluate.chat_example(q, header_of(bench.config, q.domain), 0) for q in some]
    prompts = [bench.chat.encode(e).prompt_ids for e in examples]
    times = []
    for length in (1, 5):
        started = time.perf_counter()
        list(models.greedy(loaded.model, prompts, stop_ids=(), max_new_tokens=length))
        times.append(time.perf_counter() - started)
    return max(0.0, times[1] - times[0]) / 4 / len(some)


def _tokens(loaded: Loaded, questions: Sequence[Question], form: FewShot) -> int:
    """Tokens read for questions of one domain, what they share counted once."""
    rows = [evaluate.plain_ids(loaded.tokenizer, form.prompt(q)) for q in questions]
    shared = models.common_prefix(rows) if len(rows) > 1 else 0
    return shared + sum(len(row) - shared for row in rows)


def _probe_tokens(bench: Bench, loaded: Loaded, asked: Asked, domain: str) -> int:
    mine, form = [q for q in asked.everything if q.domain == domain], form_of(bench.config, asked, domain)
    return sum(_tokens(loaded, mine[start : start + CHUNK], form) for start in range(0, len(mine), CHUNK))


def _chat_tokens(bench: Bench, questions: Sequence[Question]) -> int:
    examples = [evaluate.chat_example(q, header_of(bench.config, q.domain), 0) for q in questions]
    return sum(len(bench.chat.encode(e).prompt_ids) for e in examples)


def _per_question(bench: Bench, asked: Asked) -> float:
    some = asked.questions["homo"]
    examples = [evaluate.chat_example(q, header_of(bench.config, q.domain), 0) for q in some]
    return sum(len(row) for row in encode_all(bench.chat, examples)) / len(some)


def _per_general(bench: Bench, asked: Asked) -> float:
    return sum(len(row) for row in encode_all(bench.chat, asked.general)) / max(1, len(asked.general))
