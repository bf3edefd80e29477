"""lm-evaluation-harness on models of ours: the same numbers as its own HFLM, to the item.

Most of it needs the extra ``lm-eval`` and is skipped without; run it where ``pip install 'tunescope[lm-eval]'`` was done.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tunescope.errors import ConfigError, ModelError
from tunescope.evaluate import harness
from tunescope.models import continuation_logprobs
from tunescope.testing import byte_tokenizer, tiny_model

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"
)
its_own_warnings = pytest.mark.filterwarnings("ignore")  # of the harness and of datasets, which are not ours to mend

TASK = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


def write_task(folder: Path, text: str = TASK, n: int = 20) -> Path:
    dice = random.Random(3)
    words = ["four", "twenty", "a", "水漏れ", "no idea", "six or so"]
    rows = [
        {"question": f"{i} and {dice.choice(words)}?", "choices": dice.sample(words, 4), "answer": dice.randrange(4)}
        for i in range(n)
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return folder / "task.yaml"


def hflm(model: Any, tokenizer: Any, batch_size: int = 4) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def requests(args: list[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, i) for i, arguments in enumerate(args)]


PAIRS = [
    ("Q: which desk?\nA:", " it"),
    ("Q: which desk?\nA:", " facility management"),
    ("trailing spaces  ", "word"),
    ("", "begins with nothing"),
    ("ポンプが", "漏れた。"),
    ("x", "y"),
    ("a longer context " * 12, " and its end"),
]


# Without the extra.


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    harness._adapter.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'tunescope\[lm-eval\]'"):
        harness.harness_model(tiny_model(), byte_tokenizer())
    harness._adapter.cache_clear()


def test_pairs_score_as_choices_do_and_do_not_depend_on_the_batch() -> None:
    model, dice = tiny_model(dtype=torch.bfloat16), random.Random(0)
    prompts = [[dice.randrange(256) for _ in range(dice.randint(1, 40))] for _ in range(9)]
    choices = [[dice.randrange(256) for _ in range(n)] for n in (1, 3, 7)]
    pairs = [(p, c) for p in prompts for c in choices]
    together = harness.pair_logprobs(model, pairs, batch_tokens=4096)
    assert harness.pair_logprobs(model, pairs, batch_tokens=1) == together
    order = dice.sample(range(len(pairs)), len(pairs))
    assert [harness.pair_logprobs(model, [pairs[i]])[0] for i in order] == [together[i] for i in order]
    known = continuation_logprobs(model, prompts, choices).flatten().tolist()
    assert [value for value, _ in together] == pytest.approx(
        known, abs=0.2
    )  # one reads a continuation in one piece, bfloat16
    exact = tiny_model()
    known = continuation_logprobs(exact, prompts, choices).flatten().tolist()
    assert [value for value, _ in harness.pair_logprobs(exact, pairs)] == pytest.approx(known, abs=1e-4)


def test_the_flag_says_what_greedy_decoding_gives() -> None:
    model = tiny_model()
    context = list(b"a question")
    best = []
    with torch.no_grad():
        for _ in range(3):
            best.append(int(model(input_ids=torch.tensor([context + best])).logits[0, -1].argmax()))
    other = [*best[:-1], (best[-1] + 1) % 256]
    assert [flag for _, flag in harness.pair_logprobs(model, [(context, best), (context, other)])] == [True, False]


@pytest.mark.parametrize("pairs", [[([], [1])], [([1], [])], [([1], [1]), ([1], [])]])
def test_an_empty_context_or_continuation_is_refused(pairs: Any) -> None:
    with pytest.raises(ModelError, match="has no token"):
        harness.pair_logprobs(tiny_model(), pairs)


def test_no_pairs_are_no_scores() -> None:
    assert harness.pair_logprobs(tiny_model(), []) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TASK.replace("dataset_path: json", "dataset_path: allenai/ai2_arc"), "not on this machine"),
        (TASK.replace("dataset_path: json\n", ""), "not on this machine"),
        (TASK.replace("dataset_kwargs: {data_files: {test: rows.jsonl}}\n", ""), "names no dataset_kwargs.data_files"),
        (TASK.replace("{test: rows.jsonl}", "3"), "write a file, a list, or split: file"),
        (TASK + "process_docs: !function utils.docs\n", "names code to run"),
        (TASK + "include: other.yaml\n", "`include` is not followed"),
        (TASK.replace("task: sums", "group: sums"), "it has no `task: NAME`"),
        ("- a\n- b\n", "it has no `task: NAME`"),
        ("task: [sums", "not a plain YAML task"),
    ],
)
def test_what_is_no_local_task_is_refused_by_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        harness.read_task(write_task(tmp_path, text))


def test_all_problems_are_named_at_once_and_a_missing_file_too(tmp_path: Path) -> None:
    file = write_task(tmp_path)
    with pytest.raises(ConfigError) as caught:
        harness.read_tasks([tmp_path / "no.yaml", file, file])
    assert len(caught.value.problems) == 2 and "given twice" in caught.value.problems[1]


def test_data_files_are_relative_to_the_task(tmp_path: Path) -> None:
    found = harness.read_task(write_task(tmp_path))
    assert found["dataset_kwargs"]["data_files"] == {"test": str(tmp_path / "rows.jsonl")}
    listed = TASK.replace("{test: rows.jsonl}", "[rows.jsonl]")
    assert harness.read_task(write_task(tmp_path, listed))["dataset_kwargs"]["data_files"] == [
        str(tmp_path / "rows.jsonl")
    ]


def test_a_text_is_cut_at_the_first_stop() -> None:
    assert harness._stops({"until": [".", "\n\n", ""]}) == (".", "\n\n")
    assert harness._stops({"until": "x"}) == ("x",) and harness._stops({}) == ()
    assert harness._cut("one\n\ntwo. three", [".", "\n\n"]) == "one"
    assert harness._cut("one", ["x"]) == "one" == harness._cut("one", [])


# With it.


@needs_extra
@its_own_warnings
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_requests_score_as_with_the_harness_own_model(family: str) -> None:
    model, tokenizer = tiny_model(family), byte_tokenizer()
    mine = harness.harness_model(model, tokenizer).loglikelihood(requests(PAIRS))
    theirs = hflm(model, tokenizer).loglikelihood(requests(PAIRS))
    assert [v for v, _ in mine] == pytest.approx([float(v) for v, _ in theirs], abs=2e-3)
    assert [f for _, f in mine] == [bool(f) for _, f in theirs]


@needs_extra
@its_own_warnings
def test_our_choices_score_as_with_the_harness_own_model() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    contexts, choices = ["Q: which desk?\nA:", "Q: door\nA:"], [" it", " hr", " facility"]
    args = [(context, choice) for context in contexts for choice in choices]
    theirs = [float(v) for v, _ in hflm(model, tokenizer).loglikelihood(requests(args))]
    ids = tokenizer(contexts)["input_ids"], tokenizer(choices)["input_ids"]
    assert continuation_logprobs(model, *ids).flatten().tolist() == pytest.approx(theirs, abs=2e-3)


@needs_extra
@its_own_warnings
def test_a_request_longer_than_the_model_reads_loses_its_start_as_there_and_is_counted() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.max_position_embeddings = 64
    long = [("a context that goes on " * 8, " end"), ("short", " end")]
    ours, theirs = harness.harness_model(model, tokenizer), hflm(model, tokenizer)
    assert [v for v, _ in ours.loglikelihood(requests(long))] == pytest.approx(
        [float(v) for v, _ in theirs.loglikelihood(requests(long))], abs=2e-3
    )
    assert ours.truncated == 1
    with pytest.raises(ModelError, match="longer than the 64"):
        ours.loglikelihood(requests([("x", "y" * 80)]))


@needs_extra
@its_own_warnings
def test_perplexity_and_generation_are_those_of_the_harness_own_model() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.max_position_embeddings = 96
    texts = [("a text that is longer than one window of the model, " * 4,), ("short",)]
    ours, theirs = harness.harness_model(model, tokenizer), hflm(model, tokenizer)
    rolling = [lm.loglikelihood_rolling(requests(texts, "loglikelihood_rolling")) for lm in (ours, theirs)]
    assert rolling[0] == pytest.approx(rolling[1], rel=1e-4)
    asked = [
        ("Say something", {"until": ["z"], "max_gen_toks": 12, "do_sample": False}),
        ("More", {"until": ["z"], "max_gen_toks": 12, "do_sample": False}),
        ("Other limit", {"until": [], "max_gen_toks": 5, "do_sample": False}),
    ]
    written = [lm.generate_until(requests(asked, "generate_until")) for lm in (ours, theirs)]
    assert written[0] == written[1] and all(written[0])


@needs_extra
@its_own_warnings
def test_generation_ends_at_the_stop_text_of_each_request_and_no_later() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config.max_position_embeddings = 96
    lm = harness.harness_model(model, tokenizer)
    settings = {"max_gen_toks": 40, "do_sample": False}
    whole = lm.generate_until(requests([("Say", settings), ("More of it", settings)], "generate_until"))
    assert min(map(len, whole)) > 20
    read: list[int] = []
    handle = model.model.register_forward_hook(lambda *_: read.append(1))
    early = [text[10] for text in whole]
    asked = [(prompt, settings | {"until": stop}) for prompt, stop in zip(("Say", "More of it"), early, strict=True)]
    found = lm.generate_until(requests(asked, "generate_until"))
    handle.remove()
    assert found == [text[: text.index(stop)] for text, stop in zip(whole, early, strict=True)]
    assert sum(read) < 20  # one more than its tokens, where 40 were allowed


@needs_extra
@its_own_warnings
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True}, "sampling"),
        ({"temperature": 0.7}, "sampling"),
        ({"max_gen_toks": 9999}, "lower max_gen_toks"),
    ],
)
def test_sampling_and_limits_beyond_the_model_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        harness.harness_model(tiny_model(), byte_tokenizer()).generate_until(
            requests([("x", settings)], "generate_until")
        )


@needs_extra
@its_own_warnings
def test_a_whole_task_agrees_to_the_item(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model, tokenizer, file = tiny_model(), byte_tokenizer(), write_task(tmp_path)
    ours = harness.run_tasks(model, tokenizer, [file], samples=True)
    config = harness.read_task(file)
    config["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
    theirs = simple_evaluate(
        model=hflm(model, tokenizer),
        tasks=[config],
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    assert ours["n"] == {"sums": 20} and ours["truncated"] == 0
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["sums"][metric] == theirs["results"]["sums"][metric]
    for mine, other in zip(ours["samples"]["sums"], theirs["samples"]["sums"], strict=True):
        assert mine["doc"] == other["doc"] and mine["acc"] == other["acc"] and mine["acc_norm"] == other["acc_norm"]
        scores = [[value for value, _ in row["filtered_resps"]] for row in (mine, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)


@needs_extra
@its_own_warnings
def test_fewer_examples_and_the_chat_template(tmp_path: Path) -> None:
    model, tokenizer, file = tiny_model(), byte_tokenizer(), write_task(tmp_path)
    found = harness.run_tasks(model, tokenizer, [file], limit=5, chat=True, samples=True)
    assert found["n"] == {"sums": 5}
    assert found["samples"]["sums"][0]["arguments"][0][0].startswith("<user>Q:")
