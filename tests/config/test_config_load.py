"""Right settings: read as meant, paths relative to the file, and written so that they read back the same."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunescope import config
from tunescope.errors import ConfigError

TASK = "tasks:\n  - {name: a, metric: rouge_l}\n"


@pytest.fixture
def load(tmp_path: Path):
    def load(content: str | bytes, *overrides: str) -> config.Config:
        path = tmp_path / "conf" / "c.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return config.load(path, overrides)

    return load


def test_one_task_is_enough_and_the_rest_has_defaults(load) -> None:
    found = load(TASK)
    assert found.model == "smollm2-135m-instruct"
    assert found.tuning == config.TuningSettings()
    assert found.tasks[0].metric is config.Metric.ROUGE_L
    assert [arm.value for arm in found.arms] == ["nothing", "prompt", "selected", "random", "lora-all"]


@pytest.mark.parametrize(
    "bytes_", [b"\xef\xbb\xbf" + TASK.encode(), TASK.replace("\n", "\r\n").encode(), TASK.rstrip().encode()]
)
def test_a_bom_and_other_line_ends_change_nothing(load, bytes_: bytes) -> None:
    assert load(bytes_) == load(TASK)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("2E-4", 2e-4), ("2.e-4", 2e-4), (".2e-3", 2e-4), ("+2e-4", 2e-4), ("0.0002", 2e-4), ("1", 1.0)],
)
def test_a_number_is_read_however_it_is_written(load, text: str, value: float) -> None:
    assert load(f"{TASK}tuning: {{learning_rate: {text}}}\n").tuning.learning_rate == value
    assert load(TASK, f"tuning.learning_rate={text}").tuning.learning_rate == value


@pytest.mark.parametrize(
    "labels", ["[yes, no]", "[on, off]", "[y, n]", "[1:30, 2:30]", "[2026-01-02, 2026-13-45]", "[=, <<]"]
)
def test_words_that_yaml_1_1_takes_for_something_else_are_text(load, labels: str) -> None:
    found = load(f"tasks:\n  - {{name: a, labels: {labels}}}\n").tasks[0]
    assert found.labels == tuple(labels.strip("[]").split(", "))


def test_a_switch_may_be_written_as_yes_or_no(load) -> None:
    assert load(f"{TASK}gate: {{fail: yes}}\n").gate.fail is True
    assert load(f"{TASK}data: {{drop_duplicates: no}}\n").data.drop_duplicates is False


def test_paths_are_relative_to_the_file(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = load(
        "model: ./local\n"
        "output_dir: ../runs/a\n"
        "guard: [g.jsonl, /data/g.jsonl]\n"
        "tasks:\n"
        "  - {name: a, metric: chrf, train: data/t.jsonl, test: ~/t.jsonl, out_of_domain: o.jsonl}\n"
    )
    here = tmp_path / "conf"
    assert found.model == str(here / "local")
    assert found.output_dir == here / "../runs/a"
    assert found.guard == (here / "g.jsonl", Path("/data/g.jsonl"))
    task = found.tasks[0]
    assert (task.train, task.test) == (here / "data/t.jsonl", tmp_path / "home/t.jsonl")
    assert task.out_of_domain == (here / "o.jsonl",)


def test_the_default_output_dir_is_relative_to_the_file_too(load, tmp_path: Path) -> None:
    assert load(TASK).output_dir == tmp_path / "conf/runs/poc"


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "owner/model"])
def test_a_model_name_is_no_path(load, name: str) -> None:
    assert load(f"{TASK}model: {name}\n").model == name


@pytest.mark.parametrize("name", ["m.gguf", "./m", "../m", "."])
def test_a_model_path_is_relative_to_the_file(load, tmp_path: Path, name: str) -> None:
    assert Path(load(f"{TASK}model: {name}\n").model) == tmp_path / "conf" / name


def test_somebody_elses_home_is_left_as_written(load, tmp_path: Path) -> None:
    assert load(f"{TASK}output_dir: ~nobody-of-that-name/x\n").output_dir == tmp_path / "conf/~nobody-of-that-name/x"


def test_overrides_replace_single_settings(load) -> None:
    text = f"{TASK}  - {{name: b, metric: chrf}}\ntuning:\n  num_epochs: 1\n  lora_rank: 4\n"
    found = load(
        text, "tuning.num_epochs=2", "tasks.1.name=desk", "gate.fail=true", "arms=[nothing, full]", "revision="
    )
    assert (found.tuning.num_epochs, found.tuning.lora_rank) == (2, 4)
    assert [task.name for task in found.tasks] == ["a", "desk"]
    assert found.gate.fail
    assert [arm.value for arm in found.arms] == ["nothing", "full"]
    assert found.revision is None


def test_the_last_override_wins(load) -> None:
    assert load(TASK, "seed=1", "seed=2").seed == 2


def test_a_value_may_hold_an_equals_sign(load) -> None:
    assert load(TASK, "tasks.0.instruction=Is a=b?").tasks[0].instruction == "Is a=b?"


def test_paths_in_overrides_are_relative_to_the_working_folder(load, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(f"{TASK}guard: [a.jsonl]\n", "output_dir=out", "guard=[b.jsonl]", "model=./m", "tasks.0.train=t.jsonl")
    assert found.output_dir == tmp_path / "out"
    assert found.guard == (tmp_path / "b.jsonl",)
    assert found.model == str(tmp_path / "m")
    assert found.tasks[0].train == tmp_path / "t.jsonl"


def test_an_override_may_mend_the_file(load) -> None:
    text = "tasks:\n  - {name: a, metric: acuracy, labels: [x, y]}\n"
    with pytest.raises(ConfigError):
        load(text)
    assert load(text, "tasks.0.metric=accuracy").tasks[0].metric is config.Metric.ACCURACY


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(f"{TASK}seed: 7\n",))
    writer.start()
    assert config.load(pipe).seed == 7
    writer.join()


def test_settings_cannot_be_changed(load) -> None:
    found = load(TASK)
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        found.tuning.lora_rank = 1


def test_the_examples_of_yaml_that_look_like_numbers_survive(load, tmp_path: Path) -> None:
    labels = [
        "2e-4",
        "1e3",
        "010",
        "0x1f",
        "1_000",
        "yes",
        "null",
        "~",
        "",
        " a",
        "1:30",
        "2026-01-02",
        ".inf",
        "<<",
        "=",
        "#",
    ]
    words = tuple(label for label in labels if label.strip())
    task = config.TaskSettings(name="2e1", labels=words, instruction="", attributes=("1.5", "true", "-"))
    written = config.Config(tasks=(task,), output_dir=tmp_path)
    assert load(config.dump(written)) == written


text = st.text(max_size=20)
word = st.text(min_size=1, max_size=12).filter(str.strip)
path = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).map("/data/a{}".format)
tasks = st.lists(
    st.builds(
        config.TaskSettings,
        name=st.text("aZ_0ö品.-", min_size=1, max_size=6).map("_{}".format),
        family=text,
        train=st.none() | path,
        out_of_domain=st.lists(path, max_size=2),
        labels=st.lists(word, min_size=2, max_size=4, unique=True),
        metric=st.sampled_from(["accuracy", "macro_f1"]),
        instruction=st.none() | text,
        columns=st.none() | st.dictionaries(st.sampled_from(["input", "output"]), text),
        attributes=st.lists(text, max_size=2),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda task: task.name,
)
positive = st.floats(min_value=1e-300, max_value=10, allow_nan=False)
configs = st.builds(
    config.Config,
    model=st.builds("owner/{}".format, text),
    revision=st.none() | text,
    output_dir=path,
    seed=st.integers(0, 2**31 - 1),
    language=st.sampled_from(["en", "ja"]),
    tasks=tasks,
    guard=st.lists(path, max_size=2),
    arms=st.lists(st.sampled_from(["nothing", "prompt", "selected", "full"]), min_size=1, unique=True),
    threads=st.none() | st.integers(1, 8),
    tuning=st.builds(config.TuningSettings, learning_rate=st.just("auto") | positive, lora_alpha=positive),
    selection=st.builds(config.SelectionSettings, blocks=st.none() | st.lists(text, min_size=1, max_size=3)),
    business=st.builds(
        config.BusinessSettings, currency=st.text(min_size=1, max_size=8), person_hours=st.floats(0, 1e300)
    ),
    gate=st.builds(config.GateSettings, fail=st.booleans()),
)


@given(configs)
def test_what_is_dumped_loads_to_the_same(tmp_path_factory, written: config.Config) -> None:
    place = tmp_path_factory.getbasetemp() / "written.yaml"
    place.write_text(config.dump(written), encoding="utf-8", newline="\n")
    assert config.load(place) == written


@given(configs)
def test_what_is_dumped_is_the_same_to_any_reader_of_yaml(written: config.Config) -> None:
    assert yaml.safe_load(config.dump(written)) == written.model_dump(mode="json")


def test_a_dump_names_every_setting(load) -> None:
    found = yaml.safe_load(config.dump(load(TASK)))
    assert found.keys() == config.Config.model_fields.keys()
    assert found["tuning"].keys() == config.TuningSettings.model_fields.keys()
    assert found["tasks"][0].keys() == config.TaskSettings.model_fields.keys()
