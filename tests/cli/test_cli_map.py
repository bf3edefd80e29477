"""`tunescope map`: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import run_command
from tiny_study import write_jsonl, write_study

SMALL = {"n_bootstrap": 20, "n_permutations": 20, "causal_examples": 2, "specialist": {"steps": 2}}


@pytest.fixture(scope="module")
def study(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("map"), model, map=SMALL)


def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_it_prints_a_table_per_block_with_proposals_and_writes_pictures_and_report(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide(monkeypatch)
    said = run_command(
        "map", study, f"output_dir={tmp_path / 'run'}", "map.mode=mossa", f"map.cache={tmp_path / 'cache'}"
    )
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for block in range(4):
        assert sum(line.startswith(f"│ block.{block} ") for line in lines) == 1
    header = next(line for line in lines if "median" in line)
    assert [word in header for word in ("block", "median", "spread", "causal", "separability", "band")] == [True] * 6
    assert "3 tasks, 39 prompts, d = 16 (debiased)" in said.out
    assert "no transition band found: 4 blocks, at least 12 are needed" in said.out
    assert all(name in said.out for name in ("top_change", "top_causal", "top_third"))
    figures = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert "heat_map.svg" in figures and "causal.svg" in figures
    for path in (tmp_path / "run" / "figures").iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_json_is_one_object_with_the_whole_map(study: Path, tmp_path: Path) -> None:
    said = run_command("map", study, f"output_dir={tmp_path / 'run'}", "--json")
    assert said.code == 0, said.err
    values = said.object
    assert values["state"] == "done" and Path(values["report"]).is_file()
    assert values["layers"]["map"]["mode"] == "base"
    assert {row["name"] for row in values["layers"]["scores"]} == {"cka_in_out", "spread:cka_in_out", "separability"}
    again = run_command("map", study, f"output_dir={tmp_path / 'run'}", "--json", "--resume")
    assert again.object["layers"] == values["layers"]
    once_more = run_command("map", study, f"output_dir={tmp_path / 'run'}")
    assert (once_more.code, len(once_more.problems)) == (2, 1) and "--resume" in once_more.err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_dry_run_forecasts_and_writes_nothing(study: Path, tmp_path: Path, as_json: bool) -> None:
    more = ["--json"] if as_json else []
    said = run_command("map", study, f"output_dir={tmp_path / 'run'}", "map.mode=mossa", "--dry-run", *more)
    assert said.code == 0, said.err
    assert not (tmp_path / "run").exists()
    if as_json:
        forecast = said.object["forecast"]
        assert (forecast["tasks"], forecast["specialists"], forecast["models"]) == (3, 3, 2)
        assert set(forecast["seconds"]) == {"capture", "specialists", "similarity", "causal"}
    else:
        assert "3 specialists to tune, 0 in the cache" in said.out and "in all about" in said.out


def test_bad_input_ends_with_2_and_a_line_that_names_every_task(study: Path, tmp_path: Path) -> None:
    for name in ("routing", "mood"):
        rows = [
            {"instruction": "Desk?", "input": f"{name}{c * 9}", "output": {"routing": "it", "mood": "bad"}[name]}
            for c in "xyz"
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    given = [f"tasks.{i}.train={tmp_path / name}.jsonl" for i, name in enumerate(("routing", "mood"))]
    said = run_command("map", study, f"output_dir={tmp_path / 'run'}", *given)
    assert (said.code, len(said.problems)) == (2, 1)
    assert "'routing' (3), 'mood' (3)" in said.problems[0]
    assert not (tmp_path / "run").exists()


def test_a_tuned_model_is_needed_for_mode_pair(study: Path, tmp_path: Path) -> None:
    said = run_command("map", study, f"output_dir={tmp_path / 'run'}", "map.mode=pair")
    assert (said.code, len(said.problems)) == (2, 1) and "map.tuned" in said.problems[0]


def test_a_damaged_cache_ends_with_5_and_is_rebuilt_when_asked(study: Path, tmp_path: Path) -> None:
    def make(name: str, *more: str) -> Any:
        cache = f"map.cache={tmp_path / 'cache'}"
        return run_command("map", study, f"output_dir={tmp_path / name}", "map.mode=mossa", cache, "--json", *more)

    first = make("one")
    file = next((tmp_path / "cache").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    said = make("two")
    assert (said.code, len(said.problems)) == (5, 1) and "map.rebuild_cache=true" in said.problems[0]
    assert json.loads((tmp_path / "two" / "status.json").read_text())["state"] == "failed"
    again = make("three", "map.rebuild_cache=true")
    assert again.code == 0
    assert again.object["layers"]["scores"] == first.object["layers"]["scores"]
