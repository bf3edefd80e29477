"""Japanese goes all the way: tokens, labels, ROUGE above 0, samples, and a report in Japanese."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunescope import report
from tunescope.config import Config, load
from tunescope.data import ChatFormat
from tunescope.models import Generated, load_tokenizer
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Result, Sample
from tunescope.samples import FOLDER
from tunescope.studies import poc
from tunescope.studies.inputs import encode_inputs, read_inputs


@pytest.fixture(scope="module")
def japanese(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The Japanese sample study, cut to a few rows; a byte tokenizer needs three tokens for most characters."""
    small = [
        "arms=[nothing, prompt, selected]",
        "threads=1",
        "data.max_train_examples=5",
        "data.max_test_examples=3",
        "data.max_length=2000",
        "tuning.learning_rate=1e-3",
        "tuning.num_epochs=1",
        "selection.calibration_examples=2",
        "evaluation.latency_requests=0",
        "evaluation.demonstrations=1",
        "evaluation.n_bootstrap=200",
        "gate.min_test_examples=5",
        f"output_dir={tmp_path_factory.mktemp('ja') / 'run'}",
        f"model={model}",
    ]
    return load(FOLDER / "ja" / "tunescope.yaml", small)


@pytest.fixture(scope="module")
def chat(model: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(model)))


@pytest.fixture(scope="module")
def finished(japanese: Config, chat: ChatFormat) -> RunFolder:
    """A run in which every generated answer is the first half of the right one: a random model writes no Japanese."""
    inputs = read_inputs(japanese)
    rows = [e for t in inputs.tasks if t.labels is None for e in (*t.test, *t.out_of_domain["summary.plant_b"])]
    halves = {e.prompt_text: e.targets[0][: len(e.targets[0]) // 2] for e in rows}

    def parrot(_model: Any, prompts: Sequence[Sequence[int]], **_: Any) -> Iterator[list[tuple[int, Generated]]]:
        for index, prompt in enumerate(prompts):
            asked = chat.decode(prompt).rpartition("<user>")[2].partition("<end>")[0]
            yield [(index, Generated(tuple(chat.answer_ids(halves[asked])), hit_limit=False))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunescope.evaluate.answers.greedy", parrot)
        run = poc.run(japanese)
    report.build(run.path)
    return run


def test_japanese_comes_back_from_its_tokens(japanese: Config, chat: ChatFormat) -> None:
    inputs = encode_inputs(japanese, read_inputs(japanese), chat)
    assert not inputs.report.errors
    examples = [e for task in inputs.tasks for e in (*task.train, *task.test)]
    assert len(examples) >= 3 * 7
    for example in examples:
        encoded = chat.encode(example)
        assert chat.decode(encoded.prompt_ids) == f"<user>{example.prompt_text}<end><assistant>"
        assert chat.decode(encoded.target_ids, special=False) == example.targets[0]
    pieces = inputs.report.example["tokens"] if inputs.report.example else []
    assert "".join(text for text, has_loss in pieces if has_loss).endswith("<end>")


def test_half_a_right_answer_has_rouge_above_zero_and_below_one(finished: RunFolder) -> None:
    results = [Result.from_dict(row) for row in finished.read_json("results.json")["results"]]
    rouge = [r for r in results if r.metric == "rouge_l"]
    assert {(r.arm, r.role) for r in rouge} == {
        (arm, role) for arm in ("nothing", "prompt", "selected") for role in ("in_domain", "out_of_domain")
    }
    assert all(0.3 < r.value < 0.95 for r in rouge)


def test_japanese_labels_are_scored(finished: RunFolder) -> None:
    samples = [Sample.from_dict(row) for row in finished.read_jsonl("samples.jsonl")]
    answers = [(s, a) for s in samples if s.task == "routing" for a in s.answers.values()]
    assert len(answers) == 3 * 6
    for sample, answer in answers:
        assert list(answer["probabilities"]) == ["情報システム", "施設", "人事", "品質"]
        assert answer["text"] in answer["probabilities"] and sample.references[0] in answer["probabilities"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_files_hold_the_characters_and_no_escapes(finished: RunFolder) -> None:
    for name in ("samples.jsonl", "results.json", "data.json", "config.yaml"):
        assert "\\u" not in (finished.path / name).read_text(encoding="utf-8")
    assert "情報システム" in (finished.path / "samples.jsonl").read_text(encoding="utf-8")
    assert "情報システム" in (finished.path / "config.yaml").read_text(encoding="utf-8")


def test_the_report_is_in_japanese_and_on_request_in_english(finished: RunFolder) -> None:
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ja"' in page and "JPY" in page
    assert "情報システム" in page
    english = report.build(finished.path, lang="en").read_text(encoding="utf-8")
    assert '<html lang="en"' in english and english != page
    assert report.build(finished.path).read_text(encoding="utf-8") == page
