"""A study of a base larger than it may be in memory: the same run as with the whole base, and never more weights held than allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_study_resume import Notes, StopsIn
from tiny_stream import stream
from tiny_study import write_study
from transformers import AutoModelForCausalLM

from tunescope import engine, models
from tunescope.config import Config, load
from tunescope.errors import ConfigError, ModelError
from tunescope.runs.folder import RunFolder
from tunescope.studies import evaluate, learn, poc, tune
from tunescope.studies.base_model import load_base
from tunescope.testing import byte_tokenizer, tiny_model

ARMS = ["nothing", "prompt", "selected"]
BLOCKS = {"blocks": ["block.3"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a head of its own: none of its ends is needed twice."""
    folder = tmp_path_factory.mktemp("model") / "base"
    like = tiny_model(n_layers=4).config
    like.tie_word_embeddings = False
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(like).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sizes(base: Path) -> models.Sizes:
    return models.StreamedBase(models.locate(str(base)), dtype="float32").sizes


@pytest.fixture(scope="module")
def allowed(sizes: models.Sizes) -> int:
    """The last block, the head, and the largest piece of what lies below; by far not the whole."""
    least = sizes.tail(3) + sizes.largest
    assert least < 0.8 * sizes.whole
    return least


def limited(folder: Path, base: Path, allowed: int | None, **changes: Any) -> Config:
    settings = {"cache": str(folder.parent / "kept"), "keep_free_bytes": 0, "memory_bytes": allowed}
    values = {"arms": ARMS, "selection": BLOCKS, "dtype": "float32", "engine": settings} | changes
    return load(write_study(folder, base, **values))


@pytest.fixture(scope="module")
def told() -> dict[str, Notes]:
    """What the two runs said."""
    return {"streamed": Notes(), "held": Notes()}


@pytest.fixture(scope="module")
def runs(
    base: Path, allowed: int, told: dict[str, Notes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunFolder]:
    """The same study with the base streamed and held, tuned from the same kept states."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: poc.run(limited(root / name, base, limit), progress=told[name])
        for name, limit in (("streamed", allowed), ("held", None))
    }


def test_tuning_comes_to_the_same_bits(runs: dict[str, RunFolder]) -> None:
    weights = [load_file(run.path / "weights" / "selected" / "adapter_model.safetensors") for run in runs.values()]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    losses = [[row["loss"] for row in run.read_jsonl("steps.jsonl")] for run in runs.values()]
    assert losses[0] == losses[1] and len(losses[0]) > 4


def test_every_answer_of_every_arm_is_the_same(runs: dict[str, RunFolder]) -> None:
    streamed, held = (run.read_jsonl("samples.jsonl") for run in runs.values())
    assert streamed == held and set(streamed[0]["answers"]) == set(ARMS)
    assert any(row["answers"]["nothing"]["probabilities"] for row in streamed)


def test_the_run_says_what_was_in_memory(runs: dict[str, RunFolder], sizes: models.Sizes) -> None:
    said = {name: run.read_json("environment.json")["model"]["weight_bytes"] for name, run in runs.items()}
    assert said == {"streamed": sizes.tail(3), "held": sizes.whole}


def test_slow_generation_is_said_where_it_happens(runs: dict[str, RunFolder], told: dict[str, Notes]) -> None:
    slow = {
        name: [note for note in said.notes if "read from disk once for every token" in note]
        for name, said in told.items()
    }
    assert [note.partition(":")[0] for note in slow["streamed"]] == ARMS and slow["held"] == []


def test_no_more_weights_are_held_than_allowed(base: Path, allowed: int, tmp_path: Path) -> None:
    """Counted at every weight that is read, in a pass, in a backward pass and while text is generated."""
    config = limited(tmp_path / "study", base, allowed)
    loaded = load_base(config, models.locate(str(base)), "cpu")
    most = [0]

    def count(*_: Any) -> None:
        held = sum(p.nbytes for p in loaded.model.parameters() if not p.is_meta)
        most[0] = max(most[0], held)

    for module in loaded.model.modules():
        module.register_forward_hook(count)
    ids = torch.arange(24)[None]
    models.mean_losses(loaded.model, [models_row(ids[0].tolist())])
    list(models.greedy(loaded.model, [ids[0].tolist()], stop_ids=(), max_new_tokens=3))
    loaded.model(ids).logits.sum()
    assert 0 < most[0] <= allowed


def models_row(ids: list[int]) -> engine.stream.Choice:
    return engine.stream.Choice(tuple(ids[:20]), tuple(ids[20:]))


def test_what_is_read_in_passing_is_dropped_even_after_an_error(base: Path, allowed: int, tmp_path: Path) -> None:
    config = limited(tmp_path / "study", base, allowed)
    loaded = load_base(config, models.locate(str(base)), "cpu")
    loaded.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loaded.model(torch.arange(5)[None])
    assert models.lowest_block(loaded.model) == 3


def test_a_stop_while_the_base_is_read_is_resumed(
    base: Path, allowed: int, runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    config = limited(tmp_path / "study", base, allowed)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config, "selected", progress=StopsIn("read the base up to block.2"))
    told = Notes()
    run = tune.run(config, "selected", resume=True, progress=told)
    assert any("with one block in memory at a time; the base was read once" in note for note in told.notes)
    name = "weights/selected/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (runs["held"].path / name).read_bytes()


def test_a_base_that_fits_is_held(base: Path, sizes: models.Sizes, tmp_path: Path) -> None:
    told = Notes()
    config = limited(tmp_path / "study", base, sizes.whole, arms=["nothing", "lora-all"], selection={})
    loaded = load_base(config, models.locate(str(base)), "cpu", note=told.note)
    assert models.lowest_block(loaded.model) == 0 and "is held in memory" in told.notes[0]


def test_a_finished_run_is_evaluated_without_the_whole_base(
    base: Path, allowed: int, runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    config = limited(tmp_path / "study", base, allowed)
    again = evaluate.run(config, [runs["streamed"].path / "weights" / "selected"])
    rows = {row["id"]: row["answers"] for row in again.read_jsonl("samples.jsonl")}
    known = {row["id"]: row["answers"] for row in runs["held"].read_jsonl("samples.jsonl")}
    assert rows == known and "selected" in next(iter(rows.values()))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"selection": {}}, "selection.blocks has to say which blocks move, such as"),
        ({"selection": {"blocks": ["block.9"]}}, "selection.blocks: layer pattern 'block.9' matches nothing"),
        ({"arms": ["nothing", "selected", "random"]}, "arms random move blocks that are not held; allowed are nothing"),
        ({"selection": {"blocks": ["block.0", "block.3"]}}, r"the weights from block\.0 on, .* choose higher blocks"),
    ],
)
def test_settings_that_need_the_whole_base_are_refused(
    base: Path, allowed: int, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    config = limited(tmp_path / "study", base, allowed, **changes)
    with pytest.raises(ConfigError, match=line):
        poc.run(config)
    assert not config.output_dir.exists()


@pytest.mark.parametrize(
    ("engine_settings", "line"),
    [
        ({"keep_states": False}, "engine.keep_states is false, and such a base is tuned from kept states"),
        ({"backend": "ray", "ray": {"workers": 2}}, "engine.ray.workers is 2, and that is for one process"),
    ],
)
def test_an_engine_that_cannot_stream_is_refused(
    base: Path, allowed: int, tmp_path: Path, engine_settings: dict[str, Any], line: str
) -> None:
    config = limited(tmp_path / "study", base, allowed, engine={"memory_bytes": allowed} | engine_settings)
    with pytest.raises(ConfigError, match=line):
        load_base(config, models.locate(str(base)), "cpu")


def test_a_cache_too_small_for_the_states_is_refused_and_says_what_to_raise(
    base: Path, allowed: int, tmp_path: Path
) -> None:
    config = limited(tmp_path / "study", base, allowed, engine={"memory_bytes": allowed, "cache_bytes": 1000})
    with pytest.raises(ConfigError, match=r"engine\.cache_bytes allows 1e-06; .* raise it"):
        tune.run(config, "selected")
    status = json.loads((config.output_dir / "status.json").read_text())
    assert status["state"] != "done"


def test_a_weight_file_that_lacks_a_block_is_named(base: Path, allowed: int, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    own = Path(shutil.copytree(base, tmp_path / "own"))
    weights = load_file(own / "model.safetensors")
    save_file({n: w for n, w in weights.items() if "layers.1." not in n}, own / "model.safetensors", {"format": "pt"})
    config = limited(tmp_path / "study", own, allowed)
    with pytest.raises(ModelError, match=r"weights are missing or of another shape, the first is model\.layers\.1"):
        poc.run(config)


def test_a_stream_of_tasks_is_learned_without_the_whole_base(base: Path, allowed: int, tmp_path: Path) -> None:
    """InsCL and its memory, with the same kept states: the same weights and the same score matrix as with the base held."""
    limits = [f"engine.memory_bytes={allowed}"], []
    common = ["dtype=float32", "selection.blocks=[block.3]", f"engine.cache={tmp_path / 'kept'}"]
    found = []
    for name, limit in zip(("streamed", "held"), limits, strict=True):
        config = stream(tmp_path, base, name, ("mood", "routing"), *common, *limit, arm="selected")
        found.append(learn.run(config))
    results = [run.read_json("stream.json") for run in found]
    assert all(results[0][name] == results[1][name] for name in ("rows", "measures", "memory"))
    weights = [sorted((run.path / "weights").rglob("adapter_model.safetensors")) for run in found]
    assert weights[0] and [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
