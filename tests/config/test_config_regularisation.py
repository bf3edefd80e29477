"""Everything against overfitting is off until it is asked for; what cannot work is refused with the settings."""

from pathlib import Path

import pytest

from tunescope.config import dump, load, validate
from tunescope.errors import ConfigError

TASK = {"name": "desk", "train": "train.jsonl", "metric": "exact_match"}


def settings(**regularisation):
    return {"tasks": [TASK], "tuning": {"regularisation": regularisation}}


def test_all_of_it_is_off_by_default():
    config = validate({"tasks": [TASK]}, source="test")
    off = config.tuning.regularisation
    assert (off.l2_sp, off.kl_to_base, off.label_smoothing, off.demonstrations, off.noise_fraction) == (0, 0, 0, 0, 0)
    assert off.kl_examples == () and config.tasks[0].templates == ()
    assert (config.tuning.weight_decay, config.tuning.warmup_fraction, config.tuning.patience) == (0, 0.05, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kl_to_base": 1}, "kl_to_base needs examples"),
        ({"l2_sp": -1}, "l2_sp: got -1"),
        ({"label_smoothing": 0.6}, "label_smoothing: got 0.6"),
        ({"noise_fraction": 2}, "noise_fraction: got 2"),
        ({"demonstrations": 17}, "demonstrations: got 17"),
        ({"kl_max_examples": 0, "kl_batch_size": 0}, "kl_batch_size: got 0"),
        ({"l2sp": 1}, "unknown setting 'tuning.regularisation.l2sp' .did you mean l2_sp"),
    ],
)
def test_what_cannot_work_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        validate(settings(**values), source="test")


@pytest.mark.parametrize(
    ("templates", "said"),
    [(["Say.", " "], "a template is empty"), (["Do: {input}"], r"'Do: \{input\}' names \{input\}")],
)
def test_templates_that_cannot_be_instructions_are_refused(templates, said):
    with pytest.raises(ConfigError, match=said):
        validate({"tasks": [TASK | {"templates": templates}]}, source="test")


def test_files_are_found_beside_the_settings_and_survive_a_round_trip(tmp_path):
    path = tmp_path / "deep" / "study.yaml"
    path.parent.mkdir()
    path.write_text(
        "tasks: [{name: desk, train: train.jsonl, metric: exact_match, templates: ['Task: {instruction}']}]\n"
        "tuning: {regularisation: {kl_to_base: 0.5, kl_examples: [a.jsonl, ../b.jsonl]}}\n"
    )
    config = load(path)
    assert [Path(p).resolve() for p in config.tuning.regularisation.kl_examples] == [
        path.parent / "a.jsonl",
        tmp_path / "b.jsonl",
    ]
    (path.parent / "copy.yaml").write_text(dump(config))
    assert load(path.parent / "copy.yaml") == config
    one = load(path, ["tuning.regularisation.kl_examples=c.jsonl"])
    assert [p.is_absolute() for p in one.tuning.regularisation.kl_examples] == [True]
