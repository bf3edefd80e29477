"""Learning task after task: one more on a finished run is the stream itself, what was withdrawn never comes back, and nothing is lost silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_stream import TASKS, stream
from tiny_study import save_model

from tunescope import metrics, models, replay, report
from tunescope.config import Config
from tunescope.errors import ConfigError, DataError, IntegrityError, ModelError, RunError
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.runs.memory import Memory
from tunescope.runs.records import Result
from tunescope.studies import learn, learn_memory, tune
from tunescope.studies.progress import Silent

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, so that what an earlier test run left does not help."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESCOPE_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def shared(alone: None, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests here share it, against the rule: what one run keeps, the next finds."""
    monkeypatch.setenv("TUNESCOPE_CACHE", str(cache))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def whole(home: Path, model: Path) -> RunFolder:
    """Three tasks in three stages with everything measured, and experts."""
    folder = learn.run(
        stream(home, model, "whole", evaluate="next", experts=True), command="tunescope learn stream.yaml"
    )
    report.build(folder.path)
    return folder


@pytest.fixture(scope="module")
def two(home: Path, model: Path) -> RunFolder:
    """The first two tasks: last month."""
    return learn.run(stream(home, model, "two", TASKS[:2]))


@pytest.fixture(scope="module")
def third(home: Path, model: Path, two: RunFolder) -> RunFolder:
    """The third task on top of them: this month."""
    return learn.run(stream(home, model, "third", TASKS[2:], onto=str(two.path)))


def weights(run: RunFolder) -> bytes:
    (folder,) = (run.path / "weights").iterdir()
    return (folder / ADAPTER).read_bytes()


def facts(run: RunFolder) -> dict[str, Any]:
    return run.read_json("stream.json")


def events(run: RunFolder) -> list[str]:
    return [row["event"] for row in run.read_jsonl("ledger.jsonl")]


def refused(config: Config, error: type[Exception], said: str, **how: Any) -> None:
    """Refused with this line, and nothing was written."""
    there = config.output_dir.exists()
    with pytest.raises(error, match=said):
        learn.run(config, **how)
    assert config.output_dir.exists() == there


# What a stream is


def test_a_stream_of_one_task_is_plain_tuning(home: Path, model: Path) -> None:
    run = learn.run(stream(home, model, "single", TASKS[:1]))
    tuned = tune.run(stream(home, model, "tuned-one", TASKS[:1]), "lora-all")
    assert weights(run) == weights(tuned)
    assert [row["task"] for row in facts(run)["changes"]] == []
    assert [row["code"] for row in facts(run)["advice"]] == ["first_task", "few_examples"]


def test_joint_training_is_plain_tuning_on_all_tasks(home: Path, model: Path) -> None:
    run = learn.run(stream(home, model, "joint", policy="joint"))
    tuned = tune.run(stream(home, model, "tuned-all"), "lora-all")
    assert weights(run) == weights(tuned)
    assert len(facts(run)["rows"]) == 1 and facts(run)["measures"]["forgetting"] is None


def test_one_task_more_on_a_finished_run_ends_as_the_stream_of_all_three_bit_by_bit(
    whole: RunFolder, third: RunFolder
) -> None:
    assert weights(third) == weights(whole)
    assert [p.name for p in (third.path / "weights").iterdir()] == ["stage-03"]
    mine, all_of_it = facts(third), facts(whole)
    assert mine["order"] == all_of_it["order"] == list(TASKS)
    assert mine["stages"][0]["replayed"] == all_of_it["stages"][2]["replayed"]
    assert mine["rows"][-1]["scores"] == all_of_it["rows"][-1]["scores"]
    assert Memory.open(third.path / "memory").kept == Memory.open(whole.path / "memory").kept
    assert [task["train_sha256"] for task in mine["tasks"]] == [task["train_sha256"] for task in all_of_it["tasks"]]


MOVES = {
    "sparse entries": [
        "replay.arm=selected",
        "tuning.method=sparse",
        "selection.granularity=entry",
        "selection.score=magnitude",
    ],
    "blocks": ["replay.arm=selected", "tuning.method=weights"],
    "top third": ["replay.arm=top-third"],
    "everything": ["replay.arm=full"],
}


@pytest.mark.parametrize("moves", MOVES)
def test_whatever_moves_goes_on_from_where_it_was(moves: str, home: Path, model: Path) -> None:
    both = learn.run(stream(home, model, f"both {moves}", TASKS[:2], *MOVES[moves]))
    one = learn.run(stream(home, model, f"one {moves}", TASKS[:1], *MOVES[moves]))
    more = learn.run(stream(home, model, f"more {moves}", TASKS[1:2], *MOVES[moves], onto=str(one.path)))
    ends = [{p.name: p.read_bytes() for p in run.path.glob("weights/*/*.safetensors")} for run in (both, more, one)]
    assert ends[0] == ends[1] != {} and ends[0] != ends[2]
    assert facts(both)["rows"][-1]["scores"] == facts(more)["rows"][-1]["scores"]
    masks = sorted(p.name for p in (more.path / "masks").glob("*"))
    assert masks == (["stage-01.safetensors", "stage-02.safetensors"] if moves == "sparse entries" else [])


def test_on_a_finished_run_what_was_kept_and_lost_is_measured_against_it(third: RunFolder, two: RunFolder) -> None:
    found = facts(third)
    assert [row["arm"] for row in found["rows"]] == ["start", "stage-03"]
    assert found["rows"][0]["scores"] == facts(two)["rows"][-1]["scores"]
    changes = {row["task"]: row for row in found["changes"]}
    assert set(changes) == {"*", "routing", "mood"}
    rows = third.read_jsonl("samples.jsonl")
    for task in ("routing", "mood"):
        scores = [
            [row["answers"][arm]["score"] for row in rows if row["task"] == task] for arm in ("stage-03", "start")
        ]
        if task == "routing":
            expected = metrics.paired_difference(*scores, n_bootstrap=200, seed=3)
            assert (changes[task]["difference"], changes[task]["low"]) == (expected.value, expected.low)
        assert changes[task]["right_then_wrong"] == sum(a > b for b, a in zip(*scores, strict=True))
    assert "learns onto" in events(third)


def test_a_run_without_a_memory_is_continued_from_its_training_data(home: Path, model: Path, whole: RunFolder) -> None:
    both = tune.run(stream(home, model, "both", TASKS[:2]), "lora-all")
    run = learn.run(stream(home, model, "onto-tune", TASKS[2:], onto=str(both.path)))
    kept = Memory.open(run.path / "memory").kept
    assert {k.task for k in kept} == set(TASKS)
    assert {k.stage for k in kept if k.task != "summary"} == {"start"}
    assert sum(facts(run)["stages"][0]["replayed"].values()) == 8
    by_folder = stream(home, model, "onto-weights", TASKS[2:], onto=str(both.path / "weights" / "lora-all"))
    assert learn.run(by_folder, plan_only=True).read_jsonl("replay_plan.jsonl") == run.read_jsonl("replay_plan.jsonl")


# What is in the folder


def test_every_row_of_the_matrix_is_what_results_and_samples_say(whole: RunFolder) -> None:
    results = [Result.from_dict(row) for row in whole.read_json("results.json")["results"]]
    by_cell = {(r.arm, r.task): r for r in results if r.role == "in_domain"}
    samples = whole.read_jsonl("samples.jsonl")
    for row in facts(whole)["rows"]:
        for task, score in row["scores"].items():
            assert by_cell[row["arm"], task].value == pytest.approx(score)
            answers = [s["answers"][row["arm"]] for s in samples if s["task"] == task]
            assert len(answers) == 8
            if task != "mood":  # macro-F1
                assert np.mean([a["score"] for a in answers]) == pytest.approx(score)
    assert {arm for arm, _ in by_cell} == {"nothing", "stage-01", "stage-02", "stage-03", "expert"}
    assert [list(row["scores"]) for row in facts(whole)["rows"]] == [
        list(TASKS),
        list(TASKS[:2]),
        list(TASKS),
        list(TASKS),
    ]


def test_the_measures_are_those_of_the_matrix(whole: RunFolder) -> None:
    found = facts(whole)
    base, *rows = [list(row["scores"].values()) for row in found["rows"]]
    measures = found["measures"]
    assert measures["forgetting"]["value"] == pytest.approx(np.mean(metrics.forgetting(rows)))
    assert measures["backward_transfer"]["value"] == pytest.approx(metrics.backward_transfer(rows))
    assert measures["forward_transfer"]["value"] == pytest.approx(metrics.forward_transfer(rows, base))
    upper = found["experts"]
    shared = [task for task in TASKS[:2] if upper[task] > 0]
    if shared:
        gain = np.mean([found["rows"][-1]["scores"][task] / upper[task] for task in shared]) * 100
        assert measures["relative_gain"][-1]["value"] == pytest.approx(gain)
    assert measures["without_share"] == [task for task in TASKS if upper[task] == 0]


def test_the_plan_lists_exactly_what_was_repeated_with_its_reasons(whole: RunFolder) -> None:
    rows = whole.read_jsonl("replay_plan.jsonl")
    stages = {stage["arm"]: stage for stage in facts(whole)["stages"]}
    for arm, stage in stages.items():
        mine = [row for row in rows if row["stage"] == arm]
        counted = {task: sum(row["task"] == task for row in mine) for task in stage["replayed"]}
        assert counted == stage["replayed"]
        assert sum(counted.values()) == stage["budget"] == 4 * len(stage["pool"])
    assert {row["reason"]["code"] for row in rows} <= {"information_share", "top_up", "top_information"}
    assert all(row["instruction"] and row["output"] and row["policy"] == "inscl" for row in rows)
    texts = {e["input"] for task in TASKS for e in read_rows(whole.path.parent / "data" / f"{task}.train.jsonl")}
    assert {row["input"] for row in rows} <= texts


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_only_the_new_task_and_what_is_repeated_is_read_at_a_stage(whole: RunFolder) -> None:
    steps = whole.read_jsonl("steps.jsonl")
    taken = {arm: sum(row["arm"] == arm for row in steps) for arm in ("stage-01", "stage-02", "stage-03")}
    assert taken == {"stage-01": -(-13 // 4), "stage-02": -(-(13 + 4) // 4), "stage-03": -(-(13 + 8) // 4)}


def test_every_choice_and_everything_kept_is_in_the_ledger(whole: RunFolder) -> None:
    rows = whole.read_jsonl("ledger.jsonl")
    chosen = {row["details"]["stage"]: row["details"] for row in rows if row["event"] == "replay chosen"}
    assert list(chosen) == ["stage-01", "stage-02", "stage-03"]
    assert chosen["stage-03"]["examples"] == facts(whole)["stages"][2]["replayed"]
    assert set(chosen["stage-03"]["distances"]) == {"routing", "mood"} and chosen["stage-03"]["tagger"] == "local"
    assert [row["details"]["stage"] for row in rows if row["event"] == "memory kept"] == [
        "stage-01",
        "stage-02",
        "stage-03",
    ]
    assert rows[-1]["event"] == "stream measured"
    assert ledger.verify(whole.path / "ledger.jsonl").n == len(rows)


def test_the_more_distant_task_is_repeated_more(whole: RunFolder) -> None:
    stage = facts(whole)["stages"][2]
    distances = {task: row["value"] for task, row in stage["distances"].items()}
    expected = replay.allocate([distances[t] for t in sorted(distances)], 8, available=[13, 13])
    assert [stage["replayed"][task] for task in sorted(distances)] == expected


def test_scratch_and_weights_of_earlier_stages_are_gone(whole: RunFolder) -> None:
    assert not (whole.path / "arms").exists()
    assert [p.name for p in (whole.path / "weights").iterdir()] == ["stage-03"]
    assert whole.read_json("status.json")["state"] == "done"
    assert "stage-03" in whole.read_json("layers.json")["selections"]


def test_a_finished_stream_is_not_run_again(whole: RunFolder, home: Path, model: Path) -> None:
    config = stream(home, model, "whole", evaluate="next", experts=True)
    before = (whole.path / "stream.json").stat().st_mtime_ns
    assert learn.run(config, resume=True).path == whole.path
    assert (whole.path / "stream.json").stat().st_mtime_ns == before
    refused(config, RunError, "a run is already there")


def test_experts_are_tuned_alone_and_used_again(whole: RunFolder, home: Path, model: Path, cache: Path) -> None:
    files = sorted((cache / "experts").glob("*.json"))
    assert len(files) == 3
    times = [path.stat().st_mtime_ns for path in files]
    again = learn.run(stream(home, model, "again", TASKS[:2], policy="none", experts=True))
    assert sorted((cache / "experts").glob("*.json")) == files and [p.stat().st_mtime_ns for p in files] == times
    assert facts(again)["experts"] == {task: facts(whole)["experts"][task] for task in TASKS[:2]}
    assert not [row for row in again.read_jsonl("steps.jsonl") if row["arm"].startswith("expert")]
    alone = learn.run(stream(home, model, "alone", TASKS[1:2]))
    assert facts(alone)["rows"][-1]["scores"]["mood"] == facts(whole)["experts"]["mood"]


def test_experts_of_earlier_tasks_are_brought_along(whole: RunFolder, home: Path, model: Path) -> None:
    first = learn.run(stream(home, model, "with experts", TASKS[:2], experts=True))
    onto = learn.run(stream(home, model, "onto experts", TASKS[2:], onto=str(first.path), experts=True))
    assert facts(onto)["experts"] == facts(whole)["experts"]
    mine, expected = facts(onto)["measures"], facts(whole)["measures"]
    assert mine["without_share"] == expected["without_share"]
    if expected["relative_gain"]:
        assert mine["relative_gain"][-1]["value"] == expected["relative_gain"][-1]["value"]


def test_a_damaged_expert_is_tuned_anew(whole: RunFolder, home: Path, model: Path, cache: Path) -> None:
    contents = {path: path.read_bytes() for path in (cache / "experts").glob("*.json")}
    for path, content in contents.items():
        path.write_bytes(content.replace(b'"score": ', b'"score": 1', 1) if b'"score": 0' in content else content[:-9])
    run = learn.run(stream(home, model, "experts-again", TASKS[:1], experts=True))
    assert facts(run)["experts"]["routing"] == facts(whole)["experts"]["routing"]
    for path, content in contents.items():
        path.write_bytes(content)


# Plans, policies, resumption


@pytest.mark.parametrize("policy", list(replay.POLICIES))
def test_every_policy_plans_without_tuning(policy: str, home: Path, model: Path) -> None:
    run = learn.run(stream(home, model, f"plan-{policy}", policy=policy), plan_only=True)
    rows = run.read_jsonl("replay_plan.jsonl")
    expected = 0 if policy in ("none", "joint") else 4 + 8
    assert len(rows) == len({(row["stage"], row["task"], row["id"]) for row in rows}) == expected
    assert not (run.path / "weights").exists() and not run.has("steps.jsonl") and not (run.path / "memory").exists()
    assert run.read_json("status.json")["state"] == "done"
    assert events(run).count("replay chosen") == (1 if policy == "joint" else 3)


def test_a_plan_is_what_the_run_then_does(whole: RunFolder, home: Path, model: Path) -> None:
    config = stream(home, model, "planned", evaluate="next", experts=True)
    planned = learn.run(config, plan_only=True).read_jsonl("replay_plan.jsonl")
    assert planned == whole.read_jsonl("replay_plan.jsonl")
    run = learn.run(config, resume=True)
    assert weights(run) == weights(whole) and run.read_jsonl("replay_plan.jsonl") == planned
    assert events(run).count("replay chosen") == 3


def test_a_policy_repeats_other_examples_at_every_stage(home: Path, model: Path) -> None:
    run = learn.run(stream(home, model, "plan-fresh", policy="random", budget_per_task=6), plan_only=True)
    by_stage: dict[str, set[str]] = {}
    for row in run.read_jsonl("replay_plan.jsonl"):
        if row["task"] == "routing":
            by_stage.setdefault(row["stage"], set()).add(row["id"])
    assert len({frozenset(ids) for ids in by_stage.values()}) == 2


class StopAt(Silent):
    """Asks to stop once a stage has gone on for some units."""

    def __init__(self, stage: str, units: int = 1) -> None:
        self._wanted, self._units, self._on, self._stopped = stage, units, False, False

    def stage(self, name: str, total: int | None = None) -> None:
        self._on = name == self._wanted

    def advance(self, units: int = 1) -> None:
        self._units -= units if self._on else 0
        self._stopped = self._on and self._units <= 0

    def stopping(self) -> bool:
        return self._stopped


@pytest.mark.parametrize("where", ["stage-02: tune", "stage-03: measure"])
def test_interrupted_and_resumed_it_ends_the_same(where: str, home: Path, model: Path, whole: RunFolder) -> None:
    config = stream(home, model, "stopped " + where[:8], evaluate="next", experts=True)
    with pytest.raises(KeyboardInterrupt):
        learn.run(config, progress=StopAt(where))
    run = learn.run(config, resume=True)
    assert weights(run) == weights(whole)
    assert {k: v for k, v in facts(run).items() if k != "stages"} == {
        k: v for k, v in facts(whole).items() if k != "stages"
    }
    steps = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.read_jsonl("steps.jsonl")] for r in (run, whole)
    ]
    in_stages = [[row for row in rows if row["arm"].startswith("stage")] for rows in steps]
    assert in_stages[0] == in_stages[1]


def test_what_is_withdrawn_in_between_never_comes_back(home: Path, model: Path, whole: RunFolder) -> None:
    config = stream(home, model, "withdrawn", evaluate="next")
    with pytest.raises(KeyboardInterrupt):
        learn.run(config, progress=StopAt("stage-03: tune", units=2))
    run = RunFolder(config.output_dir)
    repeated = [row for row in run.read_jsonl("replay_plan.jsonl") if row["stage"] == "stage-03"]
    gone = repeated[0]
    assert [k.id for k in learn_memory.forget(run.path, [gone["id"]], task=gone["task"])] == [gone["id"]]
    key = (gone["task"], gone["id"])
    assert key not in {(r["task"], r["id"]) for r in run.read_jsonl("replay_plan.jsonl")}
    assert gone["input"] not in everything_written(run)
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    learn.run(config, resume=True, progress=Noting())
    assert any("begins again without them" in note for note in notes)
    assert key not in {(r["task"], r["id"]) for r in run.read_jsonl("replay_plan.jsonl")}
    assert key not in {(k.task, k.id) for k in Memory.open(run.path / "memory").kept}
    assert gone["input"] not in everything_written(run)
    assert weights(run) != weights(whole)
    noted = next(row for row in run.read_jsonl("ledger.jsonl") if row["event"] == "examples withdrawn")
    assert noted["details"]["examples"] == [{"task": gone["task"], "id": gone["id"]}]
    arms = [row["arm"] for row in run.read_jsonl("steps.jsonl")]
    assert arms.count("stage-03") == -(-(13 + 8) // 4)


def everything_written(run: RunFolder) -> str:
    """All texts in a run folder."""
    return "".join(p.read_text(encoding="utf-8", errors="replace") for p in run.path.rglob("*") if p.is_file())


def test_what_was_withdrawn_stays_withdrawn_in_the_run_that_goes_on(home: Path, model: Path, two: RunFolder) -> None:
    own = RunFolder(Path(shutil.copytree(two.path, home / "two-less")))
    gone = Memory.open(own.path / "memory").kept[0]
    learn_memory.forget(own.path, [gone.id])
    run = learn.run(
        stream(home, model, "onto-less", TASKS[2:], onto=str(own.path), policy="random", budget_per_task=100)
    )
    memory = Memory.open(run.path / "memory")
    assert memory.is_withdrawn(gone.example) and gone.id not in {k.id for k in memory.kept}
    assert facts(run)["stages"][0]["replayed"] == {"mood": 12, "routing": 13}
    assert gone.id not in {row["id"] for row in run.read_jsonl("replay_plan.jsonl")}


def test_a_smaller_memory_on_a_larger_one_is_cut_and_a_larger_one_grows(
    home: Path, model: Path, two: RunFolder
) -> None:
    small = learn.run(stream(home, model, "small", TASKS[2:], onto=str(two.path), policy="random", memory_examples=6))
    found = Memory.open(small.path / "memory")
    assert found.budget_examples == 6 and facts(small)["memory"]["by_task"] == dict.fromkeys(sorted(TASKS), 2)
    assert len(Memory.open(two.path / "memory").kept) == 26  # that of the earlier run stays what it was


# Refused before anything runs


def test_nothing_new_is_refused(home: Path, model: Path, two: RunFolder) -> None:
    refused(stream(home, model, "x", TASKS[:2], onto=str(two.path)), ConfigError, "'routing', 'mood' already")


def test_data_that_changed_since_they_were_learned_are_refused_with_the_way_out(
    home: Path, model: Path, two: RunFolder, tmp_path: Path
) -> None:
    changed = tmp_path / "routing.train.jsonl"
    changed.write_text((home / "data" / "routing.train.jsonl").read_text().replace("screen", "skreen"))
    config = stream(home, model, "x", TASKS, f"tasks.0.train={changed}", onto=str(two.path))
    refused(config, IntegrityError, "changed since .* learned task 'routing'.*put it back, give the task another name")
    same = stream(home, model, "same", TASKS, onto=str(two.path))
    assert learn.run(same, plan_only=True).read_jsonl("replay_plan.jsonl")


def test_data_that_changed_since_the_stream_began_are_refused_on_resume(
    home: Path, model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    config = stream(own, model, "run")
    with pytest.raises(KeyboardInterrupt):
        learn.run(config, progress=StopAt("stage-01: tune"))
    with (own / "data" / "mood.train.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "Mood?", "input": "A new row", "output": "good"}) + "\n")
    with pytest.raises(IntegrityError, match=r"mood\.train\.jsonl: changed since this run began; put it back"):
        learn.run(config, resume=True)


def test_the_memory_of_another_base_model_is_refused(home: Path, two: RunFolder, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=5)
    config = stream(home, other, "x", TASKS[2:], onto=str(two.path))
    refused(config, ModelError, "belong to another base model")


def test_an_adapter_goes_on_with_its_own_rank(home: Path, model: Path, two: RunFolder) -> None:
    config = stream(home, model, "x", TASKS[2:], "tuning.lora_rank=4", onto=str(two.path))
    refused(config, ConfigError, "tuning.lora_rank 4 and lora_alpha 16: the adapter .* has 2 and 16")


@pytest.mark.parametrize("kind", ["missing", "unfinished", "no run", "map"])
def test_a_run_that_cannot_be_continued_is_refused(
    kind: str, home: Path, model: Path, two: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    if kind != "missing":
        shutil.copytree(two.path, path)
    if kind == "unfinished":
        RunFolder(path).set_status("failed", stage="stage-02")
    if kind == "no run":
        (path / "status.json").unlink()
    if kind == "map":
        RunFolder(path).set_status("done", stage="done", study="map")
    refused(
        stream(home, model, "x", TASKS[2:], onto=str(path)),
        RunError,
        "no such run folder|not a run|needed is a finished run",
    )


def test_a_damaged_memory_or_weights_of_an_earlier_run_are_refused(
    home: Path, model: Path, two: RunFolder, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(two.path, tmp_path / "run"))
    examples = own / "memory" / "examples.jsonl"
    whole = examples.read_bytes()
    examples.write_bytes(whole.replace(b"Desk", b"Dexk", 1))
    refused(stream(home, model, "x", TASKS[2:], onto=str(own)), IntegrityError, "were changed")
    examples.write_bytes(whole)
    (own / "weights" / "stage-02" / "selection.json").write_text("{")
    refused(stream(home, model, "x", TASKS[2:], onto=str(own)), IntegrityError, "damaged")


def test_weights_of_the_earlier_run_that_change_while_more_is_learned_are_refused(
    home: Path, model: Path, two: RunFolder, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(two.path, tmp_path / "before"))
    config = stream(home, model, "onto-changed", TASKS[2:], onto=str(own))
    with pytest.raises(KeyboardInterrupt):
        learn.run(config, progress=StopAt("stage-03: tune"))
    file = own / "weights" / "stage-02" / ADAPTER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="its weights changed since this run began"):
        learn.run(config, resume=True)


def test_a_tag_file_without_a_row_for_every_instruction_is_refused_before_the_first_stage(
    home: Path, model: Path, tmp_path: Path
) -> None:
    tags = tmp_path / "tags.jsonl"
    tags.write_text('{"instruction": "Desk?", "tags": ["desk"]}\n{"instruction": "Never used.", "tags": []}\n')
    config = stream(home, model, "x", tags={"tagger": "file", "file": str(tags)})
    with pytest.raises(DataError, match="no row for the instruction: Mood") as caught:
        learn.run(config)
    assert len(caught.value.problems) == 2 and not config.output_dir.exists()
    with tags.open("a") as file:
        file.write('{"instruction": "Mood?", "tags": []}\n{"instruction": "Sum up.", "tags": ["summary", "desk"]}\n')
    run = learn.run(config, plan_only=True)
    assert {
        r["details"]["tagger"]
        for r in run.read_jsonl("ledger.jsonl")
        if r["event"] == "replay chosen" and "tagger" in r["details"]
    } == {"file tags.jsonl"}


def test_a_memory_too_small_for_all_tasks_says_what_happens(home: Path, model: Path) -> None:
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    run = learn.run(stream(home, model, "tight", policy="random", memory_examples=2), plan_only=True, progress=Noting())
    assert any("memory_examples 2 is below the number of tasks, 3" in note for note in notes)
    rows = run.read_jsonl("replay_plan.jsonl")
    assert {row["task"] for row in rows if row["stage"] == "stage-03"} == {"mood", "routing"}


def test_a_preview_forecasts_every_row_and_writes_nothing(home: Path, model: Path, two: RunFolder) -> None:
    config = stream(home, model, "preview", TASKS[2:], onto=str(two.path), evaluate="next")
    forecasts, selections = learn.preview(config)
    assert [f.arm for f in forecasts] == ["start", "stage-03"] and list(selections) == ["stage-03"]
    assert forecasts[0].tuning_seconds == 0 < forecasts[1].tuning_seconds
    assert not config.output_dir.exists()


# Memory


def test_the_memory_is_shown_exported_and_imported(whole: RunFolder, home: Path, tmp_path: Path) -> None:
    shown = learn_memory.show(whole.path)
    assert {task: row["examples"] for task, row in shown["tasks"].items()} == dict.fromkeys(sorted(TASKS), 13)
    assert shown["examples"] == 39 and shown["bytes"] == (whole.path / "memory" / "examples.jsonl").stat().st_size
    file = tmp_path / "memory.jsonl"
    assert learn_memory.export(whole.path, file) == 39
    bare = Path(shutil.copytree(whole.path, tmp_path / "bare", ignore=shutil.ignore_patterns("memory")))
    with pytest.raises(RunError, match="memory import"):
        learn_memory.show(bare)
    assert learn_memory.load(bare, file) == 39
    assert Memory.open(bare / "memory").kept == Memory.open(whole.path / "memory").kept
    with pytest.raises(RunError, match="not empty"):
        learn_memory.load(bare, file)
    assert RunFolder(bare).read_json("status.json")["state"] == "done"  # a wrong command is no failure of the run
    assert [row["event"] for row in RunFolder(bare).read_jsonl("ledger.jsonl")][-1] == "memory imported"


def test_an_unknown_id_withdraws_nothing(two: RunFolder, tmp_path: Path) -> None:
    own = Path(shutil.copytree(two.path, tmp_path / "own"))
    before = (own / "memory" / "examples.jsonl").read_bytes()
    with pytest.raises(RunError, match="no-such-id"):
        learn_memory.forget(own, ["no-such-id"])
    assert (own / "memory" / "examples.jsonl").read_bytes() == before
    assert RunFolder(own).read_json("status.json")["state"] == "done"


def test_nothing_is_withdrawn_while_the_run_is_at_work(two: RunFolder, tmp_path: Path) -> None:
    own = RunFolder(Path(shutil.copytree(two.path, tmp_path / "own")))
    first = Memory.open(own.path / "memory").kept[0]
    with own.locked(), pytest.raises(RunError, match="another process is at work"):
        learn_memory.forget(own.path, [first.id])
    assert first.id in {k.id for k in Memory.open(own.path / "memory").kept}


def test_vectors_of_instructions_are_kept_by_model(cache: Path, whole: RunFolder) -> None:
    files = list((cache / "instructions").glob("*.npy"))
    assert len(files) >= 3
    assert models.cache_folder() == cache
