"""The knowledge study: what it asks, what it writes, what it refuses, and that everything follows from the stored probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_questions import config_of, rows, settings, write_files, write_study
from tiny_study import write_jsonl

from tunescope import evaluate, knowledge, models, report
from tunescope.config import Config
from tunescope.errors import ConfigError, DataError, IntegrityError, RunError, TunescopeError
from tunescope.knowledge import Probe, Question, TrainingItem
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.studies import knowledge as study
from tunescope.studies import knowledge_after, knowledge_explain, knowledge_inputs, knowledge_intervene, knowledge_probe
from tunescope.studies.progress import Silent

ROLES = ("homo", "in_domain", "out_of_domain")


@pytest.fixture(scope="module")
def paths(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of a study with its questions."""
    return write_study(tmp_path_factory.mktemp("knowledge"), model)


@pytest.fixture(scope="module")
def whole(paths: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with all parts: probe, intervention, and then a tuned model added; only read it."""
    config = config_of(paths, tmp_path_factory.mktemp("whole") / "run")
    study.run(config, intervention=True)
    return study.run(config, tuned=config.output_dir / "weights/incompatible-3", resume=True)


@pytest.fixture
def config(paths: Path, tmp_path: Path) -> Callable[..., Config]:
    """Settings with their own run folder."""

    def make(*overrides: str) -> Config:
        return config_of(paths, tmp_path / "run", *overrides)

    return make


def probes(run: RunFolder, name: str, how: str) -> dict[str, list[Probe]]:
    """Role -> stored probes of one model, in the order in which the questions were asked."""
    found = {row["id"]: row for row in run.read_jsonl("probe.jsonl") if (row["model"], row["how"]) == (name, how)}
    order = [row for row in run.read_jsonl("questions.jsonl") if row["id"] in found]
    return {
        role: [Probe.from_dict(found[row["id"]]) for row in order if row["role"] == role]
        for role in ROLES
        if any(row["role"] == role for row in order)
    }


# What a run holds


def test_every_question_is_asked_once_and_no_demonstration_is(whole: RunFolder) -> None:
    stored = probes(whole, "base", "few_shot")
    assert {role: len(some) for role, some in stored.items()} == {"homo": 40, "in_domain": 10, "out_of_domain": 8}
    listed = whole.read_jsonl("questions.jsonl")
    shown = [row for row in listed if row["role"] == "demonstrations"]
    assert len(shown) == 3 * 2
    assert not {row["id"] for row in shown} & {probe.id for some in stored.values() for probe in some}
    assert all(math.isclose(sum(p.probabilities), 1, abs_tol=1e-9) for some in stored.values() for p in some)


def test_the_probe_follows_from_the_stored_probabilities(whole: RunFolder, paths: Path) -> None:
    settings_ = config_of(paths, whole.path)
    asked = knowledge_inputs.read_asked(settings_)
    again = knowledge_probe.before(settings_, asked, probes(whole, "base", "few_shot"))
    assert whole.read_json("knowledge.json")["before"] == json.loads(json.dumps(again))


def test_the_comparison_follows_from_the_stored_probabilities(whole: RunFolder, paths: Path) -> None:
    base, tuned = probes(whole, "base", "few_shot"), probes(whole, "tuned", "zero_shot")
    again = json.loads(json.dumps(knowledge_after.compare(config_of(paths, whole.path), base, tuned)))
    stored = whole.read_json("knowledge.json")["after"]
    assert {key: stored[key] for key in again} == again
    overall = again["transitions"]["*"][-1]
    pairs = [(b.correct, t.correct) for role in ROLES for b, t in zip(base[role], tuned[role], strict=True)]
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    assert [overall[key] for key in ("kept", "lost", "learned", "still_unknown")] == counts
    near = again["agreement"]["*"][-1]
    p, q = ([x.probabilities for role in ROLES for x in side[role]] for side in (base, tuned))
    assert near["consistency"] == pytest.approx(knowledge.rank_consistency(p, q))
    assert near["kl"] == pytest.approx(knowledge.mean_kl(p, q))
    assert again["partial_spearman"] == {"value": None, "n": 3}  # of three domains nothing can be said


def test_the_intervention_follows_from_the_stored_probabilities(whole: RunFolder, paths: Path) -> None:
    settings_ = config_of(paths, whole.path)
    base = probes(whole, "base", "few_shot")
    prepared = knowledge_intervene.prepare(settings_, knowledge_inputs.read_asked(settings_), base)
    answers = {
        (name, 3): {
            role: [p for q in prepared.tests[role] for p in found if p.id == q.id]
            for role, found in probes(whole, f"{name}-3", "zero_shot").items()
        }
        for name in prepared.sets
    }
    again = json.loads(json.dumps(knowledge_intervene.compare_sets(settings_, prepared, base, answers)))
    stored = whole.read_json("knowledge.json")["intervention"]
    assert {key: stored[key] for key in again} == again
    assert stored["facts"]["group_size"] == 4 and stored["facts"]["contextualised"] is True
    assert stored["comparison"]["order"] == ["harmonious", "self_aligning", "incompatible"]
    assert len(stored["costs"]) == 5 and all(cost["tuning_seconds"] > 0 for cost in stored["costs"])


def test_the_sets_differ_in_their_targets_alone(whole: RunFolder, paths: Path) -> None:
    settings_ = config_of(paths, whole.path)
    base = probes(whole, "base", "few_shot")
    prepared = knowledge_intervene.prepare(settings_, knowledge_inputs.read_asked(settings_), base)
    sets, known = prepared.sets, {probe.id: probe for probe in base["homo"]}
    assert {name: len(items) for name, items in sets.items()} == dict.fromkeys(sets, 4)
    assert all(known[item.id].correct and item.target == item.gold for item in sets["harmonious"])
    assert all(not known[item.id].correct and item.target == item.gold for item in sets["incompatible"])
    assert [item.id for item in sets["self_aligning"]] == [item.id for item in sets["incompatible"]]
    assert all(item.target == known[item.id].answer != item.gold for item in sets["self_aligning"])
    assert sum(item.target != item.gold for item in sets["mix-0.5"]) == 2
    assert {item.context for item in sets["contextualised"]} == {"It says so."}
    trained = {item.id for items in sets.values() for item in items}
    assert not trained & {question.id for questions in prepared.tests.values() for question in questions}
    assert len(prepared.general) == 4


def test_results_name_every_model_role_and_domain(whole: RunFolder) -> None:
    results = whole.read_json("results.json")["results"]
    keys = {(row["arm"], row["dataset"], row["task"]) for row in results}
    assert len(keys) == len(results)
    assert {("base", "homo", "plants"), ("base", "homo", "*"), ("tuned", "out_of_domain", "stars")} <= keys
    assert ("mix-0.5-3", "in_domain", "*") in keys
    row = next(row for row in results if (row["arm"], row["dataset"], row["task"]) == ("tuned", "homo", "*"))
    base, tuned = probes(whole, "base", "few_shot")["homo"], probes(whole, "tuned", "zero_shot")["homo"]
    assert row["value"] == pytest.approx(knowledge.accuracy(tuned))
    assert row["difference"] == pytest.approx(knowledge.accuracy(tuned) - knowledge.accuracy(base))
    assert all(row["difference"] is None for row in results if row["arm"] == "base")


def test_answers_in_words_are_kept_with_their_ranks(whole: RunFolder) -> None:
    answers = whole.read_jsonl("answers.jsonl")
    assert len(answers) == 8  # four about questions, four about general instructions
    assert all(len(row["tokens"]) == len(row["ranks"]) <= 5 and min(row["ranks"], default=1) >= 1 for row in answers)
    style = whole.read_json("knowledge.json")["after"]["style"]
    assert (style["prompts"], style["n_answers"]) == ("general", 4)
    assert whole.read_json("knowledge.json")["after"]["written"]["n"] == 4


def test_nothing_is_claimed_of_a_base_that_is_not_above_chance(whole: RunFolder) -> None:
    found = whole.read_json("knowledge.json")
    assert found["before"]["advice"][0]["code"] == "base_not_above_chance"
    assert found["after"]["judgement"]["decision"] == "not_enough_evidence"
    assert found["after"]["judgement"]["reasons"][0]["code"] == "base_not_above_chance"


def test_the_ledger_and_the_scratch_are_left_in_order(whole: RunFolder) -> None:
    checked = ledger.verify(whole.path / "ledger.jsonl")
    events = [row["event"] for row in whole.read_jsonl("ledger.jsonl")]
    assert checked.n == len(events) and {"groups drawn", "compares with", "knowledge"} <= set(events)
    assert not (whole.path / "arms").exists()
    assert sorted(p.name for p in (whole.path / "weights").iterdir()) == sorted(
        f"{name}-3" for name in ("harmonious", "incompatible", "self_aligning", "contextualised", "mix-0.5")
    )


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_report_of_all_parts_is_built(whole: RunFolder, lang: str) -> None:
    page = report.build(whole.path, lang=lang).read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    parts = [part for part in page.split("<section ") if part.startswith('id="knowledge') and "<svg" in part]
    assert len(parts) == 3
    assert all(part.count('class="means"') >= part.count("<svg") for part in parts)  # what each picture says, in words
    assert "{share}" not in page and "{domain}" not in page.partition('id="reproduce"')[0]


# Going on


def content(run: RunFolder) -> dict[str, Any]:
    """What must not depend on an interruption."""
    found = run.read_json("knowledge.json")
    found.get("intervention", {}).pop("costs", None)
    stored = {(row["model"], row["how"], row["id"]): row["probabilities"] for row in run.read_jsonl("probe.jsonl")}
    steps = [{k: v for k, v in row.items() if k != "seconds"} for row in run.read_jsonl("steps.jsonl")]
    return {"found": found, "probe": stored, "steps": steps, "results": run.read_json("results.json")}


class StopAt(Silent):
    """Asks to stop at the n-th question whether to."""

    def __init__(self, n: int) -> None:
        self.left = n

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_interrupted_at_several_moments_it_ends_as_if_nothing_had_happened(
    config: Callable[..., Config], tmp_path: Path, paths: Path
) -> None:
    small = ("knowledge.intervention.shares=[]", "evaluation.batch_tokens=512", "tuning.batch_size=4")
    expected = content(study.run(config_of(paths, tmp_path / "other", *small), intervention=True))
    interrupted = config(*small)
    for moment in (2, 5, 9, 14, 20):
        try:
            study.run(interrupted, intervention=True, resume=True, progress=StopAt(moment))
        except KeyboardInterrupt:
            assert RunFolder.open(interrupted.output_dir).read_json("status.json")["state"] == "failed"
    run = study.run(interrupted, intervention=True, resume=True)
    assert content(run) == expected
    assert [row["id"] for row in run.read_jsonl("probe.jsonl")].count("own/own-1") == len(
        {row["model"] + row["how"] for row in run.read_jsonl("probe.jsonl") if row["id"] == "own/own-1"}
    )


def test_a_finished_run_is_not_asked_again_but_a_part_can_be_added(
    config: Callable[..., Config], whole: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_ = config()
    study.run(settings_)
    monkeypatch.setattr(knowledge_probe.evaluate, "few_shot", None)  # asking again would fail
    assert study.run(settings_, resume=True).read_json("status.json")["state"] == "done"
    run = study.run(settings_, tuned=whole.path / "weights/incompatible-3", resume=True)
    assert set(run.read_json("knowledge.json")) >= {"before", "after"}
    with pytest.raises(IntegrityError, match="these are other weights"):
        study.run(settings_, tuned=whole.path / "weights/harmonious-3", resume=True)
    with pytest.raises(RunError, match="a run is already there"):
        study.run(settings_)


def test_on_resume_the_questions_must_be_those_of_the_first_time(model: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, model)
    settings_ = config_of(path, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        study.run(settings_, progress=StopAt(1))
    write_jsonl(tmp_path / "data/own.jsonl", rows("own", 40, seed=1))
    with pytest.raises(IntegrityError, match=r"own.jsonl: changed since this run began"):
        study.run(settings_, resume=True)


def test_a_preview_says_what_it_would_take_and_keeps_nothing(
    config: Callable[..., Config], whole: RunFolder, tmp_path: Path
) -> None:
    forecast = study.preview(config(), tuned=whole.path / "weights/harmonious-3", intervention=True)
    assert forecast.questions == {"homo": 40, "in_domain": 10, "out_of_domain": 8}
    assert (forecast.domains, forecast.sets, forecast.group_size) == (3, 5, 4)
    assert set(forecast.seconds) == {"probe", "tuned", "words", "tune", "test", "explanations"}
    assert all(seconds >= 0 for seconds in forecast.seconds.values()) and forecast.seconds["probe"] > 0
    assert not (tmp_path / "run").exists()


# What is asked


def test_without_a_file_of_demonstrations_they_are_drawn_and_not_asked(model: Path, tmp_path: Path) -> None:
    files = [{"file": "data/own.jsonl"}]
    settings_ = config_of(write_study(tmp_path, model, knowledge={"questions": files}), tmp_path / "run")
    asked = knowledge_inputs.read_asked(settings_)
    shown = [question.id for some in asked.shown.values() for question in some]
    assert (len(shown), len(asked.everything)) == (4, 36)
    assert not set(shown) & {question.id for question in asked.everything}


def test_the_same_questions_are_asked_for_every_seed_and_no_more_than_wanted(
    config: Callable[..., Config],
) -> None:
    first, second = (
        knowledge_inputs.read_asked(config(f"seed={seed}", "knowledge.max_questions=3")) for seed in (1, 2)
    )
    assert [q.id for q in first.everything] == [q.id for q in second.everything]
    assert {role: len(some) for role, some in first.questions.items()} == {
        "homo": 6,
        "in_domain": 6,
        "out_of_domain": 3,
    }


def test_a_question_that_stands_in_two_roles_is_asked_in_the_first(model: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, model)
    again = rows("own", 40)[:3]
    write_jsonl(tmp_path / "data/other.jsonl", [*rows("other", 4), *again])
    asked = knowledge_inputs.read_asked(config_of(path, tmp_path / "run"))
    assert len(asked.questions["in_domain"]) == 4
    assert sum(finding.code == "leakage" for finding in asked.report.findings) == 3


@pytest.mark.parametrize("ask", ["letters", "text", "text_per_byte"])
def test_free_form_questions_are_asked_both_ways(model: Path, tmp_path: Path, ask: str) -> None:
    words = ["ash", "bay", "cob", "den", "elm", "fig", "gum", "hop", "ink", "jay", "kit", "log"]
    free = [
        {"question": f"What is {word} number {i}?", "answer": word, "domain": "words"} for i, word in enumerate(words)
    ]
    free[0]["alternatives"] = ["not this", "nor this"]
    path = write_study(
        tmp_path,
        model,
        knowledge={"questions": [{"file": "data/free.jsonl"}], "ask": ask, "distractors": 2},
    )
    write_jsonl(tmp_path / "data/free.jsonl", free)
    run = study.run(config_of(path, tmp_path / "run"))
    listed = {row["text"]: row for row in run.read_jsonl("questions.jsonl")}
    assert len(listed) == 12 and all(len(row["choices"]) == 3 for row in listed.values())
    assert all(row["choices"][row["gold"]] in words for row in listed.values())
    assert set(listed["What is ash number 0?"]["choices"]) == {"ash", "not this", "nor this"}
    assert run.read_json("knowledge.json")["before"]["how"] == ("few_shot" if ask == "letters" else "text")


def test_a_study_by_text_shows_no_choices_to_anyone(model: Path, tmp_path: Path) -> None:
    """With both kinds of questions: probe, sets, tests and answers in words."""
    path = write_study(tmp_path, model, knowledge={"ask": "text", "header": None})
    own = [*rows("own", 38), {"question": "What is ash?", "answer": "ash tree", "domain": "plants"}]
    own += [
        {"question": f"What is {word}?", "answer": f"{word} tree", "domain": "plants"} for word in ("elm", "oak", "fir")
    ]
    write_jsonl(tmp_path / "data/own.jsonl", own)
    settings_ = config_of(path, tmp_path / "run")
    run = study.run(settings_, intervention=True)
    again = study.run(settings_, tuned=tmp_path / "run/weights/self_aligning-3", resume=True)
    asked, stored = knowledge_inputs.read_asked(settings_), probes(run, "base", "few_shot")
    loaded = models.load_located(models.locate(str(model)), dtype=settings_.dtype, device="cpu")
    form = evaluate.FewShot(
        "The following are questions about stars. Please give the correct answer.", tuple(asked.shown["stars"])
    )
    direct = evaluate.by_text(loaded.model, loaded.tokenizer, asked.questions["out_of_domain"], form)
    for one, other in zip(direct, stored["out_of_domain"], strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.01)
    prepared = knowledge_intervene.prepare(settings_, asked, stored)
    for item in prepared.sets["self_aligning"]:
        example = knowledge_intervene._example(settings_, item, {})
        assert example.targets == (item.choices[item.target],) and "A. " not in example.prompt_text
    found = again.read_json("knowledge.json")
    assert found["intervention"]["comparison"]["order"] and found["after"]["written"]["n"] > 0
    assert all("\nA. " not in row["prompt"] for row in again.read_jsonl("answers.jsonl"))


def test_questions_with_differing_numbers_of_choices_have_their_own_chance(model: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, model, knowledge={"questions": [{"file": "data/own.jsonl"}], "demonstrations": 0})
    two = [{**row, "choices": row["choices"][:2], "answer": 0, "domain": "pairs"} for row in rows("pair", 6)]
    write_jsonl(tmp_path / "data/own.jsonl", [*rows("own", 6, domains=("threes",)), *two])
    run = study.run(config_of(path, tmp_path / "run"))
    chance = {row["domain"]: row["chance"] for row in run.read_json("knowledge.json")["before"]["chance"]["*"]}
    assert chance == pytest.approx({"pairs": 1 / 2, "threes": 1 / 3, "*": 5 / 12})


# The tuned model


def test_a_run_stands_for_its_only_or_recommended_arm(tmp_path: Path) -> None:
    def arm(name: str) -> Path:
        folder = tmp_path / "run/weights" / name
        folder.mkdir(parents=True)
        (folder / "selection.json").write_text("{}", encoding="utf-8")
        return folder

    first = arm("selected")
    assert knowledge_after.find_tuned(tmp_path / "run") == first
    assert knowledge_after.find_tuned(first) == first
    second = arm("full")
    with pytest.raises(ConfigError, match="a run with 2 tuned arms, none of them recommended"):
        knowledge_after.find_tuned(tmp_path / "run")
    (tmp_path / "run/verdict.json").write_text(json.dumps({"arm": "full"}), encoding="utf-8")
    assert knowledge_after.find_tuned(tmp_path / "run") == second
    with pytest.raises(ConfigError, match="no such folder"):
        knowledge_after.find_tuned(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B. a bee", 1),
        ("(B)", 1),
        ("Answer: B", 1),
        ("The answer is B.", 1),
        ("A", 0),
        ("a bee", 1),
        ("It is a bee, of course.", 1),
        ("A cow", 0),
        ("D. a dog", None),
        ("a cow or a bee", None),
        ("", None),
        ("no idea", None),
        ("a beetle", 2),
    ],
)
def test_an_answer_in_words_names_a_choice_or_none(text: str, choice: int | None) -> None:
    question = Question("1", "zoo", "What flies?", ("a cow", "a bee", "a beetle"), 1)
    assert knowledge_after.choice_in(text, question) == choice


# Explanations


def items(count: int) -> list[TrainingItem]:
    return [TrainingItem(str(i), "harmonious", "zoo", f"What {i}?", ("a cow", "a bee"), 0, 0) for i in range(count)]


@pytest.mark.parametrize(("useful", "used"), [(0.4, False), (0.5, True), (1.0, True)])
def test_a_model_that_cannot_explain_a_sample_explains_nothing(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config], tmp_path: Path, useful: float, used: bool
) -> None:
    asked: list[int] = []

    def written(bench: Any, model: Any, some: list[TrainingItem], progress: Any) -> dict[tuple[str, int], str]:
        asked.append(len(some))
        return {
            (item.id, 0): "Because it is so." if place < useful * len(some) else "" for place, item in enumerate(some)
        }

    monkeypatch.setattr(knowledge_explain, "_explained", written)

    class Bench:
        config = None

    bench = Bench()
    bench.config = config()  # type: ignore[assignment]
    texts, facts = knowledge_explain.explain(bench, None, items(30), Silent())  # type: ignore[arg-type]
    assert facts["used"] is used and facts["why"] == ("able" if used else "not_able")
    assert asked == ([24, 30] if used else [24])
    assert len(texts) == (round(useful * 30) if used else 0) == facts["useful"]


def test_only_whole_sentences_of_an_explanation_are_kept() -> None:
    assert (
        knowledge_explain._whole_sentences("Bees have wings and so they fly. They al")
        == "Bees have wings and so they fly."
    )
    assert knowledge_explain._whole_sentences("It is.") == ""
    assert knowledge_explain._whole_sentences("no end of this at all and on it goes") == ""
    assert knowledge_explain._whole_sentences("蜂には翅があり、空を飛ぶことができる昆虫だからです。また") == (
        "蜂には翅があり、空を飛ぶことができる昆虫だからです。"
    )


def test_an_explanation_counts_only_if_it_leads_the_model_to_the_answer(
    monkeypatch: pytest.MonkeyPatch, config: Callable[..., Config]
) -> None:
    seen: list[str] = []

    def asked(model: Any, tokenizer: Any, questions: list[Question], *_: Any, **__: Any) -> list[Probe]:
        seen.extend(question.text for question in questions)
        sides = [(0.9, 0.1) if "cow" in question.text else (0.2, 0.8) for question in questions]
        return [Probe(q.id, q.domain, q.choices, 0, p) for q, p in zip(questions, sides, strict=True)]

    monkeypatch.setattr(knowledge_explain.evaluate, "few_shot", asked)

    class Bench:
        chat = type("Chat", (), {"tokenizer": None})
        config = None

    bench = Bench()
    bench.config = config()  # type: ignore[assignment]
    found = knowledge_explain._explains(bench, None, items(3), ["A cow it is.", "It is a bee.", ""])  # type: ignore[arg-type]
    assert found == [True, False, False]
    assert seen == ["A cow it is.\nWhat 0?", "It is a bee.\nWhat 1?"]  # question and explanation, never the answer


# What is refused, before anything is written


def broken(folder: Path, model: Path, change: dict[str, Any]) -> Path:
    """Writes a study with changed settings of `knowledge`."""
    write_files(folder)
    values = settings(model, knowledge=change)
    path = folder / "knowledge.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


OWN = {"file": "data/own.jsonl"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"questions": []}, "knowledge.questions names no file with questions to ask"),
        ({"questions": [{"file": "data/none.jsonl"}]}, "no such file"),
        (
            {"questions": [OWN, {"file": "data/copy/own2.jsonl", "role": "out_of_domain"}]},
            "all 40 questions also stand in another role",
        ),
        ({"questions": [OWN, {"file": "data/copy/own2.jsonl", "role": "demonstrations"}]}, "leakage"),
        (
            {"questions": [OWN, {"file": "data/far.jsonl", "role": "demonstrations"}]},
            "domain 'plants': no file of role demonstrations",
        ),
        ({"questions": [OWN], "demonstrations": 21}, "domain 'plants' has 20 questions"),
        ({"questions": [OWN], "demonstrations": 20}, "nothing is left to ask"),
        ({"questions": [{"file": "data/tokens.jsonl"}], "demonstrations": 0}, "contains '<end>', a control token"),
        ({"questions": [{"file": "data/long.jsonl"}], "demonstrations": 2}, "the context holds 4096"),
        ({"general": ["data/none.jsonl"]}, "no such file"),
    ],
)
def test_bad_questions_are_refused_and_leave_nothing(
    model: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = broken(tmp_path, model, change)
    (tmp_path / "data/copy").mkdir()
    (tmp_path / "data/copy/own2.jsonl").write_text((tmp_path / "data/own.jsonl").read_text(), encoding="utf-8")
    write_jsonl(tmp_path / "data/tokens.jsonl", [{"question": "An <end>?", "choices": ["a", "b"], "answer": 0}])
    long = [{"question": f"{i} " + "very long " * 180, "choices": ["yes", "no"], "answer": i % 2} for i in range(4)]
    write_jsonl(tmp_path / "data/long.jsonl", long)
    settings_ = config_of(path, tmp_path / "run")
    with pytest.raises(TunescopeError, match=said) as caught:
        study.run(settings_)
    assert isinstance(caught.value, ConfigError | DataError)
    assert all("\n" not in problem for problem in caught.value.problems)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tuning.learning_rate=auto"], "learning_rate auto would give every set its own rate"),
        (["knowledge.general=[]"], "knowledge.general is empty"),
        (["tuning.regularisation.demonstrations=2"], "would change what each set is"),
        (["knowledge.questions.0.role=in_domain"], "there are none; add a file"),
    ],
)
def test_settings_with_which_sets_cannot_be_compared_are_refused(
    config: Callable[..., Config], overrides: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        study.run(config(*overrides), intervention=True)
    assert not (tmp_path / "run").exists()
    study.run(config(*overrides))  # the probe alone does not mind


def test_groups_that_would_be_empty_are_refused_with_the_numbers(config: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match="harmonious") as caught:
        study.run(config("knowledge.threshold=0.99"), intervention=True)
    assert "0 harmonious" in str(caught.value)
    run = RunFolder.open(config().output_dir)
    assert run.read_json("status.json")["state"] == "failed"
    assert len(run.read_jsonl("probe.jsonl")) == 58  # the probe is kept


def test_rows_longer_than_the_limit_are_refused_before_tuning(config: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match=r"longer than data.max_length 64"):
        study.run(
            config("data.max_length=64", "knowledge.general=[]", f"knowledge.general={[str(short_general(config()))]}"),
            intervention=True,
        )


def short_general(settings_: Config) -> Path:
    """General examples that fit into the shortest limit."""
    path = settings_.output_dir.parent / "short.jsonl"
    return write_jsonl(path, [{"instruction": f"Say {i}", "output": "yes"} for i in range(6)])
