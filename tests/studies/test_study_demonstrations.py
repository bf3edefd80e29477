"""Tuning with in-context examples: what stands before a prompt, what is scored, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_study import write_jsonl

from tunescope.config import Config, load
from tunescope.data import ChatFormat
from tunescope.errors import ConfigError, DataError
from tunescope.models import load_tokenizer
from tunescope.runs.folder import RunFolder
from tunescope.studies import data_check, evaluate, poc
from tunescope.studies.demonstrations import at_test
from tunescope.studies.inputs import encode_inputs, read_inputs
from tunescope.studies.progress import Silent
from tunescope.studies.regularisation import training_rows

TWO = "tasks.{}.demonstrations={{count: 2, choice: {}, at: [{}]}}"
QUICK = ["arms=[nothing, prompt, lora-all]", "tuning.learning_rate=2e-3", "tuning.num_epochs=1", "guard=[]"]
QUICK += ["evaluation.latency_requests=0", "data.max_length=300"]


def with_demonstrations(
    study: Path, folder: Path, choice: str = "first", at: str = "train, test", *more: str
) -> Config:
    asked = [TWO.format(task, choice, at) for task in range(3)]
    return load(study, [f"output_dir={folder / 'own'}", *QUICK, *asked, *more])


def chat_of(model: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(model)))


def raw(study: Path, file: str) -> list[dict[str, Any]]:
    lines = (study.parent / "data" / file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_published_form_the_first_rows_of_the_file_before_every_prompt_and_no_loss_on_them(
    study: Path, model: Path, tmp_path: Path
) -> None:
    config = with_demonstrations(study, tmp_path)
    inputs, chat = read_inputs(config), chat_of(model)
    rows = training_rows(config, inputs, chat)
    assert not callable(rows) and len(rows) == len(inputs.train) > 20
    for encoded in rows:
        task = encoded.example.task
        shown = raw(study, f"{task}.train.jsonl")[:2]
        turns = "".join(f"<user>{d['instruction']}\n\n{d['input']}<end><assistant>{d['output']}<end>" for d in shown)
        assert chat.decode(encoded.prompt_ids).startswith(turns)
        assert (
            encoded.prompt_ids[-len(chat.encode(encoded.example).prompt_ids) :]
            == chat.encode(encoded.example).prompt_ids
        )
        assert chat.decode(encoded.target_ids) == encoded.example.targets[0] + "<end>"
        assert encoded.example.id not in [d["id"] for d in shown]


@pytest.mark.parametrize("at", ["train, test", "train", "test", ""])
def test_the_first_rows_of_a_file_are_never_tuned_on_nor_scored_wherever_they_are_shown(
    at: str, study: Path, tmp_path: Path
) -> None:
    inputs = read_inputs(with_demonstrations(study, tmp_path, "first", at))
    for task in inputs.tasks:
        files = {
            "train": (*task.train, *task.validation),
            "test": task.test,
            "plant_b": sum(task.out_of_domain.values(), ()),
        }
        for role, examples in files.items():
            ids = [d["id"] for d in raw(study, f"{task.name}.{role}.jsonl")]
            assert sorted(e.id for e in examples) == sorted(ids[2:])


@pytest.mark.parametrize("choice", ["random", "nearest"])
def test_drawn_and_nearest_demonstrations_keep_no_row_out(
    choice: str, study: Path, model: Path, tmp_path: Path
) -> None:
    config = with_demonstrations(study, tmp_path, choice)
    inputs, plain = read_inputs(config), read_inputs(load(study))
    assert [t.version for t in inputs.tasks] == [t.version for t in plain.tasks]
    assert len(inputs.train) == len(plain.train)
    rows = training_rows(config, inputs, chat_of(model))
    text = {e.id: chat_of(model).decode(r.prompt_ids) for r, e in zip(rows, inputs.train, strict=True)}  # type: ignore[arg-type]
    assert all(prompt.count("<user>") == 3 for prompt in text.values())
    assert all(prompt.count(e.input) == 1 for e in inputs.train for prompt in [text[e.id]])
    assert len({prompt.split("<assistant>")[0] for prompt in text.values()}) > 3


def test_at_test_each_file_has_its_own_first_rows_and_the_untouched_model_none(study: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path)
    for task in read_inputs(config).tasks:
        assert at_test(config, task, "nothing")(task.test[0]) == ()
        for arm in ("prompt", "lora-all", "a folder"):
            shown = at_test(config, task, arm)
            for role, examples in (("test", task.test), ("plant_b", next(iter(task.out_of_domain.values())))):
                expected = [d["id"] for d in raw(study, f"{task.name}.{role}.jsonl")[:2]]
                assert {tuple(d.id for d in shown(e)) for e in examples} == {tuple(expected)}


def test_shown_in_training_alone_only_the_prompt_arm_shows_examples_at_test(study: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path, "first", "train")
    task = read_inputs(config).tasks[0]
    assert at_test(config, task, "lora-all")(task.test[0]) == ()
    assert [d.file for d in at_test(config, task, "prompt")(task.test[0])] == [task.train[0].file] * 2


@pytest.fixture(scope="module")
def shown_run(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return poc.run(with_demonstrations(study, tmp_path_factory.mktemp("shown")))


def scores(run: RunFolder) -> dict[tuple[str, str, str], float]:
    rows = run.read_jsonl("samples.jsonl")
    return {(arm, r["dataset"], r["id"]): a["score"] for r in rows for arm, a in r["answers"].items()}


def probabilities(run: RunFolder, arm: str) -> dict[tuple[str, str], Any]:
    return {(r["dataset"], r["id"]): r["answers"][arm]["probabilities"] for r in run.read_jsonl("samples.jsonl")}


def test_a_whole_study_scores_every_arm_on_the_same_rows(shown_run: RunFolder, study: Path) -> None:
    rows = shown_run.read_jsonl("samples.jsonl")
    assert len(rows) == 3 * (6 + 3) and all(len(r["answers"]) == 3 for r in rows)
    left_out = {d["id"] for name in ("routing", "mood", "summary") for d in raw(study, f"{name}.test.jsonl")[:2]}
    assert left_out.isdisjoint(r["id"] for r in rows)
    token = shown_run.read_json("data.json")["example"]["tokens"]
    assert "".join(text for text, _ in token).count("<user>") == 3  # the rendered row is the one that is trained on
    assert {text for text, loss in token if loss}.isdisjoint({"<user>"})


def test_demonstrations_change_training_and_answers(shown_run: RunFolder, study: Path, tmp_path: Path) -> None:
    hidden = poc.run(with_demonstrations(study, tmp_path, "first", ""))
    assert probabilities(hidden, "nothing") == probabilities(shown_run, "nothing")
    assert probabilities(hidden, "lora-all") != probabilities(shown_run, "lora-all")
    weights = [run.path / "weights" / "lora-all" / "adapter_model.safetensors" for run in (hidden, shown_run)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    tokens = [run.read_json("costs.json")["actual"][2]["tokens"] for run in (hidden, shown_run)]
    assert tokens[1] > 2 * tokens[0]


def test_measuring_the_weights_again_gives_the_same_answers(shown_run: RunFolder, study: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path)
    again = evaluate.run(config, [shown_run.path / "weights" / "lora-all"])
    assert scores(again) == scores(shown_run)


def test_asked_without_the_examples_that_it_was_tuned_with_a_note_says_so(
    shown_run: RunFolder, study: Path, tmp_path: Path
) -> None:
    class Notes(Silent):
        told: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.told.append(text)

    adapter = [shown_run.path / "weights" / "lora-all"]
    evaluate.run(with_demonstrations(study, tmp_path / "a"), adapter, progress=Notes())
    assert not any("finished examples" in text for text in Notes.told)
    evaluate.run(with_demonstrations(study, tmp_path / "b", "first", ""), adapter, progress=Notes())
    assert sum("in tuning 2 finished examples stood before each prompt" in text for text in Notes.told) == 3


def test_scores_depend_on_neither_the_batch_nor_the_order_of_the_rows(
    shown_run: RunFolder, study: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(study.parent / "data", tmp_path / "data"))
    settings = shutil.copyfile(study, tmp_path / "study.yaml")
    for file in data.glob("*.test.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        write_jsonl(file, rows[:2] + rows[:1:-1])
    config = with_demonstrations(
        settings, tmp_path, "first", "train, test", "evaluation.batch_tokens=1", "dtype=bfloat16"
    )
    other = evaluate.run(config, [shown_run.path / "weights" / "lora-all"])
    assert scores(other) == scores(shown_run)
    for arm in ("prompt", "lora-all"):
        assert probabilities(other, arm) == probabilities(shown_run, arm)


# What is refused, before anything is written.


def test_more_than_fits_is_refused_with_the_numbers_and_what_would_fit(study: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path, "first", "train, test", "data.max_length=100")
    with pytest.raises(DataError) as caught:
        poc.run(config)
    said = str(caught.value)
    assert "routing.train.jsonl:" in said and "mood.train.jsonl:" in said
    assert "with 2 demonstrations (at train)" in said and "with 2 demonstrations (at test)" in said
    assert "over the 100 of data.max_length" in said
    assert "lower demonstrations.count to 1" in said
    assert not config.output_dir.exists()
    fitting = [o.replace("count: 2", "count: 1") for o in (TWO.format(t, "first", "train, test") for t in range(3))]
    checked, _ = data_check.run(load(study, [*QUICK, *fitting, "data.max_length=100"]))
    assert not checked.errors  # what the message proposes is true


def test_a_demonstration_among_the_scored_rows_is_refused_by_line(study: Path, tmp_path: Path) -> None:
    rows = raw(study, "routing.test.jsonl")
    file = write_jsonl(tmp_path / "same.jsonl", [*rows, rows[0] | {"id": "again"}])
    config = with_demonstrations(study, tmp_path, "first", "test", f"tasks.0.test={file}")
    with pytest.raises(DataError, match=rf"same\.jsonl:{len(rows) + 1}: asks the same as a demonstration"):
        evaluate.run(config)
    assert not config.output_dir.exists()


def test_a_file_with_no_row_left_beside_its_demonstrations_is_refused(study: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "few.jsonl", raw(study, "routing.test.jsonl")[:2])
    config = with_demonstrations(study, tmp_path, "first", "test", f"tasks.0.test={file}")
    with pytest.raises(DataError, match=r"few\.jsonl: 2 of its usable rows are demonstrations"):
        evaluate.run(config)


@pytest.mark.parametrize("choice", ["random", "nearest"])
def test_demonstrations_from_training_data_need_training_data(choice: str, study: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path, choice, "test", "tasks.0.train=null", "arms=[nothing]")
    with pytest.raises(DataError, match=r"2 demonstrations are wanted and there are 0.*training examples of the task"):
        evaluate.run(config)


def test_rows_that_all_have_one_label_are_warned_of(study: Path, model: Path, tmp_path: Path) -> None:
    rows = sorted(raw(study, "routing.test.jsonl"), key=lambda r: r["output"])
    file = write_jsonl(tmp_path / "sorted.jsonl", rows)
    config = with_demonstrations(study, tmp_path, "first", "test", f"tasks.0.test={file}")
    report = encode_inputs(config, read_inputs(config), chat_of(model)).report
    warned = [f for f in report.findings if f.code == "demonstrations_one_label" and f.file.endswith("sorted.jsonl")]
    assert [f.severity for f in warned] == ["warning"]


def test_two_sources_of_demonstrations_in_training_are_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"regularisation\.demonstrations"):
        with_demonstrations(study, tmp_path, "first", "train", "tuning.regularisation.demonstrations=1")
    with_demonstrations(study, tmp_path, "first", "test", "tuning.regularisation.demonstrations=1")


def test_other_wordings_keep_their_demonstrations(study: Path, model: Path, tmp_path: Path) -> None:
    config = with_demonstrations(study, tmp_path, "first", "train", "tasks.0.templates=['Whose is it?']")
    rows = training_rows(config, read_inputs(config), chat_of(model))
    assert callable(rows)
    mine = [chat_of(model).decode(r.prompt_ids) for r in rows(1) if r.example.task == "routing"]
    assert any("Whose is it?" in text for text in mine)
    assert all(text.count("<user>") == 3 for text in mine)
