"""One arm tuned by several workers under Ray Train, on a real cluster: the same within rounding as in one process, also when a worker dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_cluster import Nodes, Session, nodes
from safetensors.torch import load_file
from tiny_study import write_study

from tunescope.config import load
from tunescope.runs.folder import RunFolder
from tunescope.studies import tune

pytest.importorskip("ray", reason="needs the extra ray: pip install 'tunescope[ray]'")
pytest.importorskip("pandas", reason="Ray Train needs it: pip install 'tunescope[ray]'")

COUNTED = ("arm", "step", "epoch", "tokens", "target_tokens", "learning_rate")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(2) as found:
        yield found


@pytest.fixture(scope="module")
def session(cluster: Nodes) -> Iterator[Session]:
    found = Session(cluster.address)
    yield found
    found.close()


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tuning = {"num_epochs": 6, "batch_size": 8, "lora_rank": 2, "patience": 0}
    return write_study(
        tmp_path_factory.mktemp("ray"), model, arms=["nothing", "selected"], tuning=tuning, dtype="float32"
    )


@pytest.fixture(scope="module")
def local(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    tune.run(load(study, [f"output_dir={folder}"]), "selected")
    return folder


@pytest.fixture(scope="module")
def two_workers(study: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    code, said = session.run(on_ray(study, folder / "run"), folder / "said.txt")
    assert code == 0, said
    return folder / "run"


def on_ray(study: Path, folder: Path, *more: str) -> list[str]:
    return ["tune", str(study), "engine=ray", "engine.ray.workers=2", f"output_dir={folder}", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights/selected/adapter_model.safetensors")


def steps(folder: Path) -> list[dict[str, Any]]:
    return RunFolder.open(folder).read_jsonl("steps.jsonl")


def assert_close(folder: Path, expected: Path) -> None:
    """The same examples and steps, and numbers that differ in rounding alone."""
    found, wanted = steps(folder), steps(expected)
    assert [{key: row[key] for key in COUNTED} for row in found] == [
        {key: row[key] for key in COUNTED} for row in wanted
    ]
    for row, other in zip(found, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
    mine, theirs = weights(folder), weights(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.linalg.vector_norm(tensor - theirs[name]) <= 1e-3 * torch.linalg.vector_norm(theirs[name]), name
    costs = [RunFolder.open(run).read_json("costs.json")["actual"][0] for run in (folder, expected)]
    for key in ("steps", "tokens", "learning_rate", "trainable_parameters"):
        assert costs[0][key] == costs[1][key], key


def test_two_workers_do_what_one_process_does(two_workers: Path, local: Path) -> None:
    assert_close(two_workers, local)


def test_a_worker_that_is_killed_in_the_middle_of_tuning_changes_no_bit(
    study: Path, cluster: Nodes, session: Session, two_workers: Path, tmp_path: Path
) -> None:
    run = session.start(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    file = tmp_path / "run/arms/selected/steps.jsonl"
    run.wait_until(lambda: file.is_file() and file.read_bytes().count(b"\n") >= 9)
    cluster.working("ray::RayTrainWorker")[-1].kill()
    assert run.code() == 0, run.said()
    assert "continues after step" in run.said()
    plain = [{key: value for key, value in row.items() if key != "seconds"} for row in steps(tmp_path / "run")]
    assert plain == [{key: value for key, value in row.items() if key != "seconds"} for row in steps(two_workers)]
    found, expected = weights(tmp_path / "run"), weights(two_workers)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_is_cut_over_two_workers_does_the_same(
    study: Path, session: Session, local: Path, tmp_path: Path
) -> None:
    rate = RunFolder.open(local).read_json("costs.json")["actual"][0]["learning_rate"]
    more = ["engine.ray.sharding=fsdp2", f"tuning.learning_rate={rate}"]
    code, said = session.run(on_ray(study, tmp_path / "run", *more), tmp_path / "said.txt")
    assert code == 0, said
    found, wanted = steps(tmp_path / "run"), steps(local)
    assert [row["tokens"] for row in found] == [row["tokens"] for row in wanted]
    mine, theirs = weights(tmp_path / "run"), weights(local)
    for name, tensor in mine.items():
        assert torch.linalg.vector_norm(tensor - theirs[name]) <= 1e-3 * torch.linalg.vector_norm(theirs[name]), name


def test_an_error_of_the_workers_comes_through_as_itself(study: Path, session: Session, tmp_path: Path) -> None:
    run = session.start(on_ray(study, tmp_path / "run"), tmp_path / "said.txt")
    run.wait_until((tmp_path / "run/config.yaml").is_file)
    damaged = tmp_path / "run/arms/selected/checkpoint.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a checkpoint")
    assert run.code() == 5, run.said()
    assert run.said().splitlines()[-1].startswith(f"error: {damaged}: the checkpoint is damaged")
    assert "Traceback" not in run.said() and "WorkerGroupError" not in run.said()
