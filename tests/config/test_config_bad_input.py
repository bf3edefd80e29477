"""Wrong settings: one line per problem, all at once, each with its line and what to do; never a traceback."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunescope import config
from tunescope.errors import ConfigError

TASK = "tasks:\n  - {name: a, metric: rouge_l}\n"


@pytest.fixture
def problems(tmp_path: Path):
    """Loads a text (or bytes) and returns the problems without the name of the file."""

    def load(content: str | bytes, *overrides: str) -> list[str]:
        path = tmp_path / "c.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ConfigError) as caught:
            config.load(path, overrides)
        assert caught.value.exit_code == 2
        assert all("\n" not in problem for problem in caught.value.problems)
        return [problem.replace(f"{path}:", "") for problem in caught.value.problems]

    return load


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        # names
        (f"tunning: {{lora_rank: 3}}\n{TASK}", 1, "unknown setting 'tunning' (did you mean tuning?); allowed: model, "),
        (f"{TASK}tuning:\n  lora_rnak: 3\n", 4, "unknown setting 'tuning.lora_rnak' (did you mean lora_rank"),
        ("tasks:\n  - name: a\n    metric: rouge_l\n    lables: [x, y]\n", 4, "'tasks.0.lables' (did you mean labels?)"),
        (f"{TASK}str: 1\n", 3, "unknown setting 'str'"),
        (f"{TASK}float: 1\n", 3, "unknown setting 'float'"),
        (f"{TASK}'[key]': 1\n", 3, "unknown setting '[key]'"),
        (f"{TASK}<<: {{seed: 1}}\n", 3, "unknown setting '<<'"),
        (f"{TASK}1: 2\n", 3, "'1' is not the name of a setting"),
        (f"{TASK}true: 2\n", 3, "'true' is not the name of a setting"),
        (f"{TASK}[a, b]: 2\n", 3, "a list or a mapping is not the name of a setting"),
        (f"{TASK}? {{a: b}}\n: 2\n", 3, "a list or a mapping is not the name of a setting"),
        ("tasks:\n  - {name: a, metric: rouge_l, columns: {inptu: x}}\n", 2, "columns.inptu: got 'inptu' (did you mean input?)"),
        # repeated keys
        (f"seed: 1\n{TASK}seed: 2\n", 4, "'seed' is set twice; keep one"),
        (f"seed: 1\n{TASK}'seed': 2\n", 4, "'seed' is set twice; keep one"),
        (f"{TASK}tuning:\n  num_epochs: 1\n  num_epochs: 2\n", 5, "'num_epochs' is set twice"),
        (f"{TASK}tuning: {{num_epochs: 1}}\ntuning: {{lora_rank: 2}}\n", 4, "'tuning' is set twice"),
        # types
        (f"{TASK}tuning: {{num_epochs: two}}\n", 3, "tuning.num_epochs: got 'two', needs a whole number"),
        (f"{TASK}seed: 3.5\n", 3, "seed: got 3.5, needs a whole number"),
        (f"{TASK}seed: {'9' * 5000}\n", 3, "seed: got '9999"),
        (f"{TASK}seed: 1:30\n", 3, "seed: got '1:30', needs a whole number"),
        (f"{TASK}model: 3\n", 3, "model: got 3, needs text; put a number or true in quotes"),
        (f"{TASK}tuning: [1]\n", 3, "tuning: got a list, needs `key: value` lines"),
        (f"{TASK}tuning:\n", 3, "tuning: got nothing, needs `key: value` lines"),
        (f"{TASK}arms: full\n", 3, "arms: got 'full', needs a list"),
        (f"{TASK}output_dir: 3\n", 3, "output_dir: got 3, needs a path"),
        (f"{TASK}output_dir: ''\n", 3, "output_dir: got '', which names no file"),
        (f'{TASK}output_dir: "a\\0b"\n', 3, "a\\x00b', which names no file"),
        (f"{TASK}guard: [a.jsonl, '']\n", 3, "guard.1: got '', which names no file"),
        (f"{TASK}gate: {{fail: maybe}}\n", 3, "gate.fail: got 'maybe', needs true or false"),
        (f"{TASK}tuning: {{learning_rate: fast}}\n", 3, "tuning.learning_rate: got 'fast', needs a number, or 'auto'"),
        (f'{TASK}model: "\\ud800"\n', 3, "model: got '\\ud800'"),
        ("tasks: {a: {name: a}}\n", 1, "tasks: got a mapping, needs a list"),
        ("tasks: [a]\n", 1, "tasks.0: got 'a', needs `key: value` lines"),
        ("tasks:\n  - {name: 3, metric: rouge_l}\n", 2, "tasks.0.name: got 3, needs text"),
        ("tasks:\n  - name: a\n    labels: [1, x]\n", 3, "tasks.0.labels.0: got 1, needs text"),
        # bool is no number, and a number no bool
        (f"{TASK}seed: true\n", 3, "seed: got true; only a setting that is on or off takes true or false"),
        (f"{TASK}tuning: {{lora_alpha: false}}\n", 3, "tuning.lora_alpha: got false;"),
        (f"{TASK}tuning: {{learning_rate: true}}\n", 3, "tuning.learning_rate: got true;"),
        (f"{TASK}threads: true\n", 3, "threads: got true;"),
        # numbers that are none, and ranges
        (f"{TASK}tuning: {{weight_decay: .inf}}\n", 3, "tuning.weight_decay: got inf, needs a finite number"),
        (f"{TASK}tuning: {{learning_rate: .nan}}\n", 3, "tuning.learning_rate: got nan, needs a finite number, or 'auto'"),
        (f"{TASK}tuning: {{learning_rate: 1e999}}\n", 3, "tuning.learning_rate: got inf, needs a finite number"),
        (f"{TASK}business: {{requests_per_month: -.inf}}\n", 3, "business.requests_per_month: got -inf"),
        (f"{TASK}tuning: {{learning_rate: -1}}\n", 3, "tuning.learning_rate: got -1, it should be greater than 0, or 'auto'"),
        (f"{TASK}tuning: {{lora_rank: 0}}\n", 3, "tuning.lora_rank: got 0, it should be greater than or equal to 1"),
        (f"{TASK}selection: {{budget: 1.5}}\n", 3, "selection.budget: got 1.5, it should be less than or equal to 1"),
        (f"{TASK}selection: {{blocks: []}}\n", 3, "selection.blocks: got 0 entries, needs at least 1"),
        (f"{TASK}tuning: {{target_modules: []}}\n", 3, "tuning.target_modules: got 0 entries"),
        ("seed: 1\ntasks: []\n", 2, "tasks: got 0 entries, needs at least 1"),
        # words from a list
        (f"{TASK}arms:\n  - nothing\n  - lora_all\n", 5, "arms.1: got 'lora_all' (did you mean lora-all?); allowed: nothing, prompt"),
        (f"{TASK}dtype: float16\n", 3, "dtype: got 'float16' (did you mean bfloat16, float32?)"),
        (f"{TASK}device: gpu\n", 3, "device: got 'gpu'"),
        ("tasks:\n  - name: a\n    metric: acuracy\n", 3, "tasks.0.metric: got 'acuracy' (did you mean accuracy?)"),
        ("tasks:\n  - {name: ../../a, metric: rouge_l}\n", 2, "tasks.0.name: got '../../a'"),
        # settings that contradict each other
        (f"{TASK}arms: [nothing, random]\n", 3, "arms: random is the control of selected: add selected, or drop random"),
        (f"{TASK}arms: [full, full]\n", 3, "arms: an arm is listed twice"),
        (f"{TASK}model: m.gguf\nrevision: main\n", 4, "revision: got 'main', but a revision is for hub ids"),
        ("seed: 1\ntasks:\n  - name: a\n", 3, "tasks.0.metric: accuracy needs labels"),
        ("tasks:\n  - name: a\n    labels: [x, y]\n    metric: rouge_l\n", 4, "tasks.0.metric: rouge_l is for generated answers"),
        ("tasks:\n  - name: a\n    labels: [x]\n", 3, "tasks.0.labels: got 1 label(s), a task with labels needs at least 2"),
        ("tasks:\n  - name: a\n    labels: [x, x]\n", 3, "tasks.0.labels: the labels are not distinct"),
        ("tasks:\n  - name: a\n    labels: [x, ' ']\n", 3, "tasks.0.labels: a label is empty"),
        (f"{TASK}  - {{metric: chrf, name: b}}\n  - {{metric: chrf,\n     name: a}}\n", 5, "tasks.2.name: got 'a', this task name is used twice"),
        # something is missing
        ("seed: 1\n", 1, "tasks is missing"),
        ("tasks:\n  - {metric: rouge_l}\n", 2, "tasks.0.name is missing"),
        ("seed: 1\ntasks:\n", 2, "tasks: got nothing, needs a list"),
        # not YAML, or more YAML than is good
        ("tasks: [\n", 2, "not valid YAML"),
        ("tuning:\n\tlora_rank: 3\n", 2, "not valid YAML"),
        (f"{TASK}---\n{TASK}", 3, "not valid YAML (but found another document)"),
        ("seed: 1\nmodel: a\x00b\n", 2, "not valid YAML (character #x0000 is not allowed)"),
        ("- a\n", 1, "a settings file is a list of `key: value` lines"),
        ("hello\n", 1, "a settings file is a list of `key: value` lines"),
        (f"{TASK}model: !!python/object/apply:os.system ['touch owned']\n", 3, "python/object/apply:os.system' is not allowed"),
        (f"{TASK}!!python/name:os.system x: 1\n", 3, "YAML tag"),
        (f"{TASK}model: !mine x\n", 3, "YAML tag '!mine' is not allowed"),
        (f"{TASK}seed: !!int x\n", 3, "YAML tag"),
        (f"{TASK}model: !!timestamp x\n", 3, "YAML tag"),
        (f"{TASK}model: !!binary aGk=\n", 3, "YAML tag"),
        (f"{TASK}model: &a x\n", 3, "anchors and aliases are not allowed"),
        ("&a model: x\n", 1, "anchors and aliases are not allowed"),
        ("tasks: &a [*a]\n", 1, "anchors and aliases are not allowed"),
        (f"{TASK}model: *a\n", 3, "not valid YAML (found undefined alias"),
        ("seed: 1\nmodel: " + "[" * 50_000 + "]" * 50_000, 2, "nested deeper than 20 levels"),
        ("seed: 1\nmodel: " + "{a: " * 3000 + "1" + "}" * 3000, 2, "nested deeper than 20 levels"),
        ("".join(" " * i + "a:\n" for i in range(900)), 21, "nested deeper than 20 levels"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_line(problems, content: str, line: int, said: str) -> None:
    found = problems(content)
    assert len(found) == 1
    assert found[0].startswith(f"{line}: ")
    assert said in found[0]
    assert len(found[0]) < 500


def test_a_tag_is_never_acted_on(problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems(f"{TASK}model: !!python/object/apply:os.system ['touch owned']\n")
    problems(TASK, "model=!!python/object/apply:os.system ['touch owned']")
    assert not (tmp_path / "owned").exists()


def test_all_problems_come_in_one_error(problems) -> None:
    found = problems(
        "seed: 1\n"
        "seed: 2\n"
        "sede: 3\n"
        "tuning: {learning_rate: fast, num_epochs: two,\n"
        "  lora_rnak: 3}\n"
        "arms: [random]\n"
        "tasks:\n"
        "  - name: routing\n"
        "    labels: [it]\n"
        "  - name: summary\n"
        "    metric: acuracy\n"
        "1: 2\n",
        "gate.fail=maybe",
        "tasks.7.name=x",
    )
    placed = sorted((problem.split(": ")[0], problem.split(": ", 1)[1][:32]) for problem in found)
    assert placed == [
        ("11", "tasks.1.metric: got 'acuracy' (d"),
        ("12", "'1' is not the name of a setting"),
        ("2", "'seed' is set twice; keep one"),
        ("3", "unknown setting 'sede' (did you "),
        ("4", "tuning.learning_rate: got 'fast'"),
        ("4", "tuning.num_epochs: got 'two', ne"),
        ("5", "unknown setting 'tuning.lora_rna"),
        ("6", "arms: random is the control of s"),
        ("9", "tasks.0.labels: got 1 label(s), "),
        ("override 'tasks.7.name=x'", "7 does not exist there"),
        ("override gate.fail=maybe", "gate.fail: got 'maybe', needs tr"),
    ]


def test_tags_and_anchors_are_all_named_at_once(problems) -> None:
    found = problems("model: !a x\nseed: &b 1\ntasks: *b\n")
    assert [problem.partition(":")[0] for problem in found] == ["1", "2", "3"]


def test_aliases_that_would_explode_cost_nothing(problems) -> None:
    names = "abcdefghijklmnop"
    laughs = f"a: &a [{', '.join(['ha'] * 9)}]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(names)
    )
    tracemalloc.start()
    try:
        found = problems(laughs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == len(names)  # one a line
    assert peak < 20_000_000


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "~\n"])
def test_an_empty_file_is_told_from_a_wrong_one(problems, text: str) -> None:
    [found] = problems(text)
    assert "the file is empty; `tunescope init` writes one" in found


@pytest.mark.parametrize("encoding", ["utf-16", "cp932", "latin-1"])
def test_another_encoding_is_named_as_such(problems, encoding: str) -> None:
    content = f"model: {'é' if encoding == 'latin-1' else '設備'}\n{TASK}".encode(encoding)
    [found] = problems(content)
    assert "not UTF-8 (byte " in found
    assert "save the file as UTF-8" in found


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "routing.yaml").write_text(TASK)
    with pytest.raises(ConfigError, match=r"routign\.yaml: no such settings file \(did you mean routing\.yaml\?\)"):
        config.load(tmp_path / "routign.yaml")
    with pytest.raises(ConfigError, match="no such settings file; `tunescope init`"):
        config.load(tmp_path / "nowhere" / "c.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, a YAML file is needed"):
        config.load(tmp_path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be read \(Not a directory\)"):
        config.load(tmp_path / "a" / "c.yaml")


def test_a_file_that_never_ends_is_refused(problems) -> None:
    [found] = problems("# " + "x" * 1_000_000)
    assert "too long for a settings file" in found
    if Path("/dev/zero").exists():
        with pytest.raises(ConfigError, match="too long for a settings file"):
            config.load(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tuning.num_epochs", "write key=value, for example tuning.num_epochs=2"),
        ("=3", "write key=value"),
        ("tuning.num_epochs=[1", "not valid YAML"),
        ("seed=&a 1", "anchors and aliases are not allowed"),
        ("seed={a: 1, a: 2}", "'a' is set twice"),
        ("model=" + "[" * 5000, "nested deeper than 20 levels"),
        ("tasks.5.name=x", "5 does not exist there"),
        ("tasks.0=3", "tasks.0: got 3, needs `key: value` lines"),
        ("tasks.²=3", "the list there has 1 entries, counted from 0"),
        ("tasks.1={name: b}", "the list there has 1 entries, counted from 0"),
        ("seed.x=1", "seed is a single value, it has no 'x'"),
        ("tuning.num_epochs.x=1", "tuning.num_epochs: got a mapping, needs a whole number"),
        ("revision.x=1", "'revision' is empty there"),
        ("tuning.lora_rnak=3", "unknown setting 'tuning.lora_rnak' (did you mean lora_rank"),
        ("tunning.lora_rank=3", "unknown setting 'tunning' (did you mean tuning?)"),
        ("seed=", "seed: got nothing, needs a whole number"),
        ("seed=true", "seed: got true;"),
        ("arms=[random]", "arms: random is the control of selected"),
        ("output_dir=", "output_dir: got nothing, needs a path"),
    ],
)
def test_a_wrong_override_is_named_as_the_user_wrote_it(problems, override: str, said: str) -> None:
    [found] = problems(f"{TASK}seed: 1\nrevision:\n", override)
    assert found.startswith((f"override {override!r}: ", f"override {override}: "))
    assert said in found


def test_a_wrong_value_inside_an_override_is_not_blamed_on_the_file(problems) -> None:
    [found] = problems(f"{TASK}tuning:\n  num_epochs: 3\n", "tuning={num_epochs: two}")
    assert found.startswith("override tuning={num_epochs: two}: tuning.num_epochs: got 'two'")


@given(st.text())
def test_no_text_at_all_brings_anything_but_settings_or_a_config_error(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        config.load(path)  # no text without `tasks:` is a settings file


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("random")
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))
names = st.sampled_from([*config.Config.model_fields, *config.TaskSettings.model_fields])


@example({}, {"columns": {"\n": None}})
@given(st.dictionaries(names, values), st.dictionaries(names, values))
def test_no_values_at_all_bring_anything_but_settings_or_a_config_error(top: dict, task: dict) -> None:
    given_values = {"tasks": [{"name": "a", "metric": "chrf"} | task], **top}
    try:
        found = config.validate(given_values, source="x")
    except ConfigError as error:
        assert error.problems
        assert all(problem.startswith("x: ") and "\n" not in problem for problem in error.problems)
    else:
        assert found.tasks
