"""Arms and specialists on a real Ray cluster of several nodes: the same results as in one process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_cluster import Command, Nodes, Session, nodes
from tiny_study import write_study

from tunescope.config import load
from tunescope.runs import ledger
from tunescope.runs.folder import RunFolder
from tunescope.studies import choices, poc
from tunescope.studies import map as layer_map

pytest.importorskip("ray", reason="needs the extra ray: pip install 'tunescope[ray]'")

SAME_BYTES = ("results.json", "samples.jsonl", "risk.json", "verdict.json", "layers.json", "data.json")
ARMS = ["nothing", "selected", "full"]
SHORT = ["tuning.num_epochs=1", "tuning.learning_rate=1e-3", "data.max_train_examples=8"]
SCORES = ["gradient_norm"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(1, 1) as found:
        yield found


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms; tuning is long enough to be hit in the middle."""
    tuning = {"num_epochs": 8, "batch_size": 8, "lora_rank": 2, "patience": 0}
    return write_study(tmp_path_factory.mktemp("ray"), model, arms=ARMS, tuning=tuning)


@pytest.fixture(scope="module")
def local(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    poc.run(load(study, [f"output_dir={folder}"]), command="tunescope poc")
    return folder


@pytest.fixture(scope="module")
def session(cluster: Nodes) -> Iterator[Session]:
    found = Session(cluster.address)
    yield found
    found.close()


def everything(folder: Path) -> dict[str, object]:
    """What must not depend on where it was computed: all but times, memory, machines and paths."""
    run = RunFolder.open(folder)
    steps = [{key: value for key, value in row.items() if key != "seconds"} for row in run.read_jsonl("steps.jsonl")]
    costs = [
        {key: row[key] for key in ("arm", "steps", "tokens", "trainable_parameters", "adapter_bytes", "learning_rate")}
        for row in run.read_json("costs.json")["actual"]
    ]
    weights = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.glob("weights/*/*.safetensors")}
    events = [row["event"] for row in run.read_jsonl("ledger.jsonl") if row["event"] not in ("cluster", "overrides")]
    texts = {name: (folder / name).read_bytes() for name in SAME_BYTES}
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("report."))
    return {"steps": steps, "costs": costs, "events": events, "left": left, **weights, **texts}


def assert_same(folder: Path, expected: Path) -> None:
    found, wanted = everything(folder), everything(expected)
    assert [name for name in wanted if found.get(name) != wanted[name]] == []
    assert found.keys() == wanted.keys()


def on_ray(study: Path, folder: Path, *more: str) -> list[str]:
    return ["poc", str(study), "engine=ray", f"output_dir={folder}", *more]


def steps_done(folder: Path, *arms: str) -> int:
    files = [folder / "arms" / arm / "steps.jsonl" for arm in arms]
    return max(file.read_bytes().count(b"\n") if file.is_file() else 0 for file in files)


def test_arms_on_the_cluster_give_the_bytes_of_one_process(
    study: Path, session: Session, local: Path, tmp_path: Path
) -> None:
    code, said = session.run(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    assert code == 0, said
    assert_same(tmp_path / "run", local)
    rows = RunFolder.open(tmp_path / "run").read_jsonl("ledger.jsonl")
    machines = next(row["details"] for row in rows if row["event"] == "cluster")
    assert (len(machines["nodes"]), machines["own"], machines["cpus"]) == (2, False, 1)
    assert "room for 2 processes of 1 CPUs" in " ".join(said.split()) and "selected: tune (40 steps)" in said
    assert "ray::" not in said and "Traceback" not in said


def test_a_process_that_is_killed_in_the_middle_of_tuning_changes_nothing(
    study: Path, cluster: Nodes, session: Session, local: Path, tmp_path: Path
) -> None:
    run = session.start(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    run.wait_until(lambda: steps_done(tmp_path / "run", "selected") >= 9)
    victims = cluster.working("ray::perform")
    assert victims
    for victim in victims:
        victim.kill()
    assert run.code() == 0, run.said()
    assert "its process was lost; it goes on from the last checkpoint" in run.said()
    assert "raylet" not in run.said(), "Ray's own words are kept out"
    assert_same(tmp_path / "run", local)


def test_ctrl_c_leaves_a_run_that_goes_on_in_one_process(
    study: Path, cluster: Nodes, local: Path, tmp_path: Path
) -> None:
    arguments = on_ray(study, tmp_path / "run", f"engine.ray.address={cluster.address}")
    run = Command(arguments, tmp_path / "said.txt")
    run.wait_until(lambda: steps_done(tmp_path / "run", "selected") >= 3)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.code() == 130, run.said()
    assert run.said().splitlines()[-1].endswith("--resume to go on")
    done = steps_done(tmp_path / "run", "selected")
    assert 3 <= done < 40 and (tmp_path / "run/arms/selected/checkpoint.safetensors").is_file()
    assert json.loads((tmp_path / "run/status.json").read_text())["error"] == "stopped by the user"
    poc.run(load(study, [f"output_dir={tmp_path / 'run'}"]), resume=True)
    assert_same(tmp_path / "run", local)


def test_a_driver_that_is_killed_leaves_a_run_that_goes_on(
    study: Path, cluster: Nodes, session: Session, local: Path, tmp_path: Path
) -> None:
    run = Command(on_ray(study, tmp_path / "run", f"engine.ray.address={cluster.address}"), tmp_path / "said.txt")
    run.wait_until(lambda: steps_done(tmp_path / "run", "selected") >= 9)
    run.process.kill()
    assert run.code() == -signal.SIGKILL
    code, said = session.run([*on_ray(study, tmp_path / "run"), "--resume"], tmp_path / "again.txt")
    assert code == 0, said
    assert_same(tmp_path / "run", local)
    assert ledger.verify(tmp_path / "run" / "ledger.jsonl").n > 0


def test_an_error_of_ours_comes_through_as_itself_and_is_not_tried_again(
    study: Path, session: Session, tmp_path: Path
) -> None:
    run = session.start(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    run.wait_until((tmp_path / "run/config.yaml").is_file)
    damaged = tmp_path / "run/arms/selected/checkpoint.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a checkpoint")
    assert run.code() == 5, run.said()
    last = run.said().splitlines()[-1]
    assert last.startswith(f"error: {damaged}: the checkpoint is damaged") and last.endswith("to start this arm again")
    assert "Traceback" not in run.said() and "RayTaskError" not in run.said() and "was lost" not in run.said()


def test_without_an_address_a_cluster_is_started_here_and_stopped(study: Path, tmp_path: Path) -> None:
    more = ["arms=[nothing]", "--json"]
    run = Command(on_ray(study, tmp_path / "run", *more), tmp_path / "said.txt")
    family: dict[int, psutil.Process] = {}

    def seen() -> bool:
        family.update({child.pid: child for child in psutil.Process(run.process.pid).children(recursive=True)})
        return (tmp_path / "run/arms/nothing/answers.jsonl").is_file() or run.ended()

    run.wait_until(seen)
    assert run.code() == 0, run.said()
    rows = RunFolder.open(tmp_path / "run").read_jsonl("ledger.jsonl")
    machines = next(row["details"] for row in rows if row["event"] == "cluster")
    assert machines["own"] and len(machines["nodes"]) == 1
    assert len(family) > 3, "a cluster is several processes"
    _, left = psutil.wait_procs(list(family.values()), timeout=60)
    assert not left
    assert "raylet" not in run.said() and "uthentication" not in run.said(), "Ray's own words are kept out"


def test_specialists_of_a_map_are_the_same_files(study: Path, session: Session, tmp_path: Path) -> None:
    settings = ["map.mode=mossa", "map.specialist.steps=4", "map.n_permutations=20", "map.n_bootstrap=20"]
    layer_map.run(load(study, [*settings, f"map.cache={tmp_path / 'here'}", f"output_dir={tmp_path / 'run-here'}"]))
    there = ["engine=ray", f"map.cache={tmp_path / 'there'}", f"output_dir={tmp_path / 'run-there'}"]
    code, said = session.run(["map", str(study), *settings, *there], tmp_path / "said.txt")
    assert code == 0, said
    files = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("*.safetensors")}
    assert len(files) == 3
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "there").glob("*.safetensors")}
    here, away = (json.loads((tmp_path / name / "layers.json").read_text()) for name in ("run-here", "run-there"))
    assert here["scores"] == away["scores"]


def two_seeds(arguments: list[str]) -> None:
    """A study over seeds, as ``dev/choices.py`` runs it, on the cluster."""
    study, folder = map(Path, arguments)
    choices.run(load(study, [f"output_dir={folder}", *SHORT, "engine.backend=ray"]), scores=SCORES, seeds=(1, 2))
    sys.exit(0)


def test_a_study_over_seeds_is_the_same_on_the_cluster(study: Path, session: Session, tmp_path: Path) -> None:
    code, said = session.run([str(study), str(tmp_path / "ray")], tmp_path / "said.txt", two_seeds)
    assert code == 0, said
    choices.run(load(study, [f"output_dir={tmp_path / 'here'}", *SHORT]), scores=SCORES, seeds=(1, 2))
    here, there = (RunFolder(tmp_path / name).read_json(choices.RESULT) for name in ("here", "ray"))
    assert here.pop("tuning_seconds").keys() == there.pop("tuning_seconds").keys()
    assert here == there
    here_files, there_files = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("samples.jsonl")}
        for name in ("here", "ray")
    )
    assert sorted(map(str, here_files)) == ["gradient_norm-1/samples.jsonl", "gradient_norm-2/samples.jsonl"]
    assert here_files == there_files
    assert not (tmp_path / "ray" / "arms").exists(), "what the pieces told is put away"


def test_a_machine_that_does_not_see_the_run_folder_is_named(study: Path, session: Session, tmp_path: Path) -> None:
    # Every process sees a folder of its own under this name.
    code, said = session.run(on_ray(study, Path("/proc/self/cwd/run")), tmp_path / "said.txt")
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and all("it does not see /proc/self/cwd; all machines need" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "engine.ray.cpus_per_task=64",
            "a process takes 64 CPUs and 0 GPUs, and the 3 machine(s) of the cluster have at most 1 CPUs",
        ),
        ("engine.ray.workers=5", "5 processes of 1 CPUs and 0 GPUs each, and there is room for 2"),
        ("engine.ray.gpus_per_task=1", "a process takes 1 CPUs and 1 GPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_at_once(
    override: str, words: str, study: Path, session: Session, tmp_path: Path
) -> None:
    code, said = session.run(on_ray(study, tmp_path / "run", override), tmp_path / "said.txt")
    assert code == 2 and words in said, said
    assert not (tmp_path / "run").exists()


def test_a_machine_that_is_taken_away_changes_nothing(
    study: Path, cluster: Nodes, session: Session, local: Path, tmp_path: Path
) -> None:
    """The last one: afterwards the cluster has a single machine that works."""
    run = session.start(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    run.wait_until(lambda: steps_done(tmp_path / "run", "selected", "full") >= 5)
    cluster.remove(0)
    assert run.code() == 0, run.said()
    assert_same(tmp_path / "run", local)
