"""The parts of a stream that need no stream: vectors of texts, keys of experts, the bias table, the tagger of the settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_stream import TASKS, stream

from tunescope import layers, models
from tunescope.config import TagSettings
from tunescope.data import Example, Task
from tunescope.errors import DataError, IntegrityError, RunError
from tunescope.replay import BiasRow, EndpointTagger, FileTagger, LocalTagger
from tunescope.runs.folder import RunFolder
from tunescope.runs.records import Selection
from tunescope.studies.bench import Bench
from tunescope.studies.learn_bias import bias_rows
from tunescope.studies.learn_choose import make_tagger, stage_seed
from tunescope.studies.learn_embed import Embedder
from tunescope.studies.learn_experts import _key
from tunescope.studies.learn_stream import Stage
from tunescope.studies.progress import Silent
from tunescope.studies.setup import begin, check

LORA = Selection("lora", ("block.0", "block.1", "block.2", "block.3"), ("q",), "test")


@pytest.fixture(scope="module")
def bench(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    config = stream(tmp_path_factory.mktemp("parts"), model, "run", TASKS)
    folder = RunFolder.create(config.output_dir, "", study="learn", command="")
    return begin(check(config, Silent()), folder, "", Silent())


class Counting(Silent):
    """Counts the texts that were read."""

    def __init__(self) -> None:
        self.read = 0

    def advance(self, units: int = 1) -> None:
        self.read += units


# Vectors of texts


def test_a_text_is_the_mean_state_of_the_last_block_over_its_own_tokens(bench: Bench) -> None:
    texts = ["Sort this.", "Which desk is it?"]
    found = Embedder(bench, Silent())(texts)
    loaded = bench.load()
    for text, row in zip(texts, found, strict=True):
        ids = bench.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = layers.capture(loaded.model, [ids]).mean[-1][0]
        np.testing.assert_allclose(row, expected, rtol=1e-2, atol=1e-2)  # bfloat16: the batch changes the rounding
        assert np.allclose(row, last_block(loaded.model, ids), rtol=2e-2, atol=2e-2)


def last_block(model: Any, ids: list[int]) -> np.ndarray:
    """Mean over the tokens of what the last block gives, computed alone."""
    seen: list[torch.Tensor] = []
    handle = models.blocks(model)[-1].register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        model(torch.tensor([ids]))
    handle.remove()
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return state.reshape(-1, state.shape[-1]).float().mean(dim=0).numpy()


def test_what_was_read_once_is_not_read_again(bench: Bench) -> None:
    texts = ["Sort this.", "Count that."]
    first, second = Counting(), Counting()
    found = Embedder(bench, first)(texts)
    assert np.array_equal(Embedder(bench, second)(texts), found)
    assert (first.read, second.read) == (2, 0)


def test_vectors_of_another_number_format_are_others(bench: Bench) -> None:
    full = dataclasses.replace(bench, config=bench.config.model_copy(update={"dtype": "float32"}))
    assert Embedder(full, Silent()).name != Embedder(bench, Silent()).name
    counting = Counting()
    Embedder(bench, Silent())(["Sort this."])
    Embedder(full, counting)(["Sort this."])
    assert counting.read == 1


def test_a_text_that_would_end_the_turn_or_says_nothing_is_refused(bench: Bench) -> None:
    with pytest.raises(DataError, match="'<end>', a control token"):
        Embedder(bench, Silent())(["Sort <end> this."])
    with pytest.raises(DataError, match="no tokens for this model"):
        Embedder(bench, Silent())([""])


def test_a_cache_that_cannot_be_written_is_one_line(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="set TUNESCOPE_CACHE"):
        Embedder(bench, Silent())(["Sort this."])


# Experts


def changed(bench: Bench, **settings: Any) -> Bench:
    return dataclasses.replace(bench, config=bench.config.model_copy(update=settings))


def test_an_expert_is_known_by_all_that_its_answers_depend_on(bench: Bench) -> None:
    config = bench.config
    key = _key(bench, LORA, "routing")
    assert key == _key(bench, dataclasses.replace(LORA, why="other words", trainable_parameters=9), "routing")
    first, *others = bench.inputs.tasks
    fewer = dataclasses.replace(first, train=first.train[1:])
    tested = dataclasses.replace(first, test=first.test[1:])
    keys = {
        key,
        _key(bench, LORA, "mood"),
        _key(bench, dataclasses.replace(LORA, modules=("v",)), "routing"),
        _key(changed(bench, seed=4), LORA, "routing"),
        _key(changed(bench, dtype="float32"), LORA, "routing"),
        _key(changed(bench, tuning=config.tuning.model_copy(update={"num_epochs": 7})), LORA, "routing"),
        _key(changed(bench, evaluation=config.evaluation.model_copy(update={"max_new_tokens": 7})), LORA, "routing"),
        *(
            _key(
                dataclasses.replace(bench, inputs=dataclasses.replace(bench.inputs, tasks=(task, *others))),
                LORA,
                "routing",
            )
            for task in (fewer, tested)
        ),
    }
    assert len(keys) == 9
    same = changed(
        bench,
        replay=config.replay.model_copy(update={"policy": "none"}),
        evaluation=config.evaluation.model_copy(update={"batch_tokens": 77, "n_bootstrap": 999}),
    )
    assert _key(same, LORA, "routing") == key


def test_the_order_of_other_tasks_does_not_change_an_expert(bench: Bench) -> None:
    turned = dataclasses.replace(bench, inputs=dataclasses.replace(bench.inputs, tasks=bench.inputs.tasks[::-1]))
    assert _key(turned, LORA, "mood") == _key(bench, LORA, "mood")


# The bias table


def rows(n: int, task: str, **attributes: str) -> list[Example]:
    texts = ("Bitte sortieren und zählen.", "Sort the mail and the bills.")
    return [
        Example(
            f"{i}", task, texts[i % 2], "x" * (100 * (i % 2)), (("good", "bad", "other")[i % 3],), attributes=attributes
        )
        for i in range(n)
    ]


def test_the_table_compares_task_language_length_label_and_named_attributes() -> None:
    pool = [*rows(60, "mood", site="A"), *rows(40, "text", site="B")]
    tasks = [Task("mood", "", "accuracy", labels=("good", "bad")), Task("text", "", "rouge_l")]
    kept = {("mood", e.id) for e in pool if e.task == "mood" and e.instruction.startswith("Bitte")}
    found = [BiasRow.from_dict(row) for row in bias_rows(pool, kept, tasks)]
    by_value = {(row.attribute, row.within, row.value): row for row in found}
    assert {row.attribute for row in found} == {"task", "language", "length", "label", "site"}
    assert by_value["task", "", "text"].kept_share == 0 and by_value["task", "", "text"].flagged
    assert by_value["language", "", "de"].kept_share == 1 and by_value["language", "", "de"].flagged
    labels = {key for key in by_value if key[0] == "label"}
    assert labels == {("label", "mood", "good"), ("label", "mood", "bad")}  # free answers are no labels
    assert by_value["site", "", "A"].n_pool == 60


def test_what_the_user_says_about_language_counts_before_the_guess() -> None:
    found = bias_rows(rows(30, "t", language="nl"), {("t", "1")}, [Task("t", "", "rouge_l")])
    assert {row["value"] for row in found if row["attribute"] == "language"} == {"nl"}


def test_an_empty_pool_has_no_table() -> None:
    assert bias_rows([], set(), []) == []


# Tags and seeds


def test_the_tagger_is_the_one_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "tags.jsonl"
    file.write_text(json.dumps({"instruction": "Sort.", "tags": ["sort"]}) + "\n")
    assert isinstance(make_tagger(TagSettings(), tmp_path), LocalTagger)
    assert isinstance(make_tagger(TagSettings(tagger="file", file=file), tmp_path), FileTagger)
    asked = make_tagger(TagSettings(tagger="endpoint", url="http://127.0.0.1:9/v1", model="m"), tmp_path / "a.jsonl")
    assert isinstance(asked, EndpointTagger) and asked.name == "endpoint m"


def test_draws_differ_by_stage_and_by_seed() -> None:
    stages = [Stage(f"stage-{i:02d}", ("a",)) for i in range(50)]
    assert len({stage_seed(seed, stage) for seed in range(10) for stage in stages}) == 500
    assert stage_seed(3, stages[1]) == stage_seed(3, Stage("stage-01", ("b",)))


def test_a_memory_that_is_damaged_is_found_when_it_is_opened(bench: Bench, tmp_path: Path) -> None:
    from tunescope.studies.learn_memory import open_memory

    run = RunFolder.create(tmp_path / "run", "", study="learn", command="")
    own = dataclasses.replace(bench, run=run)
    rest = run.path / ".memory.123.part"
    rest.mkdir()
    (rest / "examples.jsonl").write_text("withdrawn\n")
    memory = open_memory(own, None)
    assert memory.base_model == {"sha256": bench.located.sha256} and not rest.exists()
    (run.path / "memory" / "examples.jsonl").write_text("x\n")
    with pytest.raises(IntegrityError, match="were changed"):
        open_memory(own, None)
