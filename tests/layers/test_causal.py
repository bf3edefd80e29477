"""Putting blocks back: the losses of a model loaded that way, bit for bit; the tuned model as it was; intervals as SciPy gives them."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from scipy import stats

from tunescope.data import Encoded, Example
from tunescope.errors import ModelError, UserError
from tunescope.layers import causal_scores, put_back, put_back_losses, windows
from tunescope.models import block_names, blocks, mean_losses, pad_right, token_losses
from tunescope.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text"]
N_LAYERS = 4
UNTUNED = 1  # the block that is the same in base and tuned model
WINDOWS = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (1, 3), (2, 4), (1, 4), (0, 4)]
ADAPTERS = {
    "lora": {},
    "dora": {"use_dora": True},
    "lora beside saved modules": {"modules_to_save": ["gate_proj"]},
}


def make_rows(count: int = 6, *, seed: int = 0, longest: int = 24) -> list[Encoded]:
    numbers = random.Random(seed)
    return [
        Encoded(
            tuple(numbers.randrange(256) for _ in range(numbers.randint(2, longest))),
            (*(numbers.randrange(256) for _ in range(numbers.randint(1, 5))), 256),
            Example(str(i), "t", "", "", ("x",)),
        )
        for i in range(count)
    ]


ROWS = make_rows()


@torch.no_grad()
def tuned_weights(family: str = "llama", **settings: Any) -> Any:
    """A model whose blocks, one excepted, are not the base's; embeddings, norm and head are."""
    model = tiny_model(family, n_layers=N_LAYERS, **settings)
    noise = torch.Generator().manual_seed(1)
    for i, block in enumerate(blocks(model)):
        if i != UNTUNED:
            for parameter in block.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=noise).to(parameter.dtype)
    return model


@torch.no_grad()
def tuned_adapters(family: str = "llama", **settings: Any) -> Any:
    """The same with PEFT adapters that change something."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    config.layers_to_transform = [i for i in range(N_LAYERS) if i != UNTUNED]
    model = get_peft_model(tiny_model(family, n_layers=N_LAYERS), config)
    noise = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or ".modules_to_save." in name:
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
    return model.requires_grad_(False).eval()


def swapped(tuned: Any, base: Any, window: tuple[int, int]) -> Any:
    """A new model with these blocks loaded from the base."""
    model = copy.deepcopy(tuned)
    for i in range(*window):
        blocks(model)[i].load_state_dict(blocks(base)[i].state_dict())
    return model


def without_adapters(tuned: Any, window: tuple[int, int]) -> Any:
    """A new model with the adapters of these blocks taken out."""
    model = copy.deepcopy(tuned)
    for i in range(*window):
        block = blocks(model)[i]
        for name, module in list(block.named_modules()):
            if isinstance(module, BaseTunerLayer):
                block.set_submodule(name, module.get_base_layer())
            elif isinstance(module, ModulesToSaveWrapper):
                block.set_submodule(name, module.original_module)
    return model


def by_hand(tuned: Any, base: Any, batch_tokens: int, rows: list[Encoded] = ROWS) -> np.ndarray[Any, Any]:
    """The naive loop: a model per window."""
    models = [swapped(tuned, base, w) if base is not None else without_adapters(tuned, w) for w in WINDOWS]
    return np.stack([mean_losses(model, rows, batch_tokens=batch_tokens) for model in [tuned, *models]])


def state_of(model: Any) -> list[Any]:
    """Everything that could be left behind: values, memory, versions, replaced methods, hooks, flags."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    values = [(name, t.clone(), t.data_ptr(), t._version, t.requires_grad) for name, t in tensors]
    modules = [
        (name, "forward" in vars(m), len(m._forward_pre_hooks), len(m._forward_hooks), m.training)
        for name, m in model.named_modules()
    ]
    return [values, modules]


def assert_untouched(model: Any, before: list[Any]) -> None:
    after = state_of(model)
    assert after[1] == before[1]
    assert len(after[0]) == len(before[0])
    for mine, theirs in zip(after[0], before[0], strict=True):
        assert torch.equal(mine[1], theirs[1]), mine[0]
        assert (mine[0], *mine[2:]) == (theirs[0], *theirs[2:])


# --- the same as loading the model that way ---


@pytest.mark.parametrize("batch_tokens", [16, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_model_loaded_with_swapped_blocks_bit_for_bit(family: str, batch_tokens: int) -> None:
    base, tuned = tiny_model(family, n_layers=N_LAYERS), tuned_weights(family)
    found = put_back_losses(tuned, base, WINDOWS, ROWS, batch_tokens=batch_tokens)
    assert found.tolist() == by_hand(tuned, base, batch_tokens).tolist()
    assert found[-1].tolist() == mean_losses(base, ROWS, batch_tokens=batch_tokens).tolist()
    assert found[2].tolist() == found[0].tolist()  # the block that was not tuned
    assert len({tuple(losses) for losses in found}) == 6  # tuned blocks put back: none, 0, 2, 3, 2 and 3, all three


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_model_without_the_adapters_bit_for_bit(family: str, kind: str) -> None:
    tuned = tuned_adapters(family, **ADAPTERS[kind])
    found = put_back_losses(tuned, None, WINDOWS, ROWS, batch_tokens=64)
    assert found.tolist() == by_hand(tuned, None, 64).tolist()
    base = tiny_model(family, n_layers=N_LAYERS)
    assert found[-1].tolist() == mean_losses(base, ROWS, batch_tokens=64).tolist()
    assert len({tuple(losses) for losses in found}) >= 6


def test_losses_in_bfloat16_are_those_of_swapped_models_bit_for_bit() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS, dtype=torch.bfloat16), tuned_weights(dtype=torch.bfloat16)
    assert put_back_losses(tuned, base, WINDOWS, ROWS).tolist() == by_hand(tuned, base, 2048).tolist()


def test_embeddings_norm_and_head_stay_the_tuned_models() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tuned_weights()
    with torch.no_grad():
        tuned.model.norm.weight.mul_(1.5)
        tuned.model.embed_tokens.weight.add_(0.01)
    found = put_back_losses(tuned, base, WINDOWS, ROWS)
    assert found.tolist() == by_hand(tuned, base, 2048).tolist()
    assert (found[-1] != mean_losses(base, ROWS)).all()


def test_how_rows_are_batched_hardly_matters() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tuned_weights()
    alone, together = (put_back_losses(tuned, base, WINDOWS, ROWS, batch_tokens=n) for n in (1, 4096))
    np.testing.assert_allclose(alone, together, atol=1e-5)
    order = [3, 0, 5, 1, 4, 2]
    turned = put_back_losses(tuned, base, WINDOWS, [ROWS[i] for i in order], batch_tokens=1)
    assert turned.tolist() == alone[:, order].tolist()


def test_blocks_below_a_window_are_computed_once() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tuned_weights()
    calls = [0] * N_LAYERS
    for i, block in enumerate(blocks(tuned)):

        def count(_module: Any, _args: Any, i: int = i) -> None:
            calls[i] += 1

        block.mlp.register_forward_pre_hook(count)
    put_back_losses(tuned, base, [(2, 3), (3, 4), (1, 2), (1, 3)], ROWS, batch_tokens=4096)
    assert calls == [1, 1, 3, 4]  # once as tuned; from block 2 twice, from block 3 once; (1, 2) was not tuned


# --- the models are left as they were ---


@pytest.mark.parametrize("adapters", [False, True])
def test_the_models_are_the_same_afterwards(adapters: bool) -> None:
    base = None if adapters else tiny_model(n_layers=N_LAYERS)
    tuned = tuned_adapters(modules_to_save=["gate_proj"]) if adapters else tuned_weights()
    before = state_of(tuned), base and state_of(base)
    first = put_back_losses(tuned, base, WINDOWS, ROWS)
    assert_untouched(tuned, before[0])
    if base is not None:
        assert_untouched(base, before[1])
    assert put_back_losses(tuned, base, WINDOWS, ROWS).tolist() == first.tolist()


@pytest.mark.parametrize("stop", [1, 2, 4, 7, 10])
@pytest.mark.parametrize("adapters", [False, True])
def test_the_model_is_the_same_after_ctrl_c(adapters: bool, stop: int) -> None:
    base = None if adapters else tiny_model(n_layers=N_LAYERS)
    tuned = tuned_adapters() if adapters else tuned_weights()
    before = state_of(tuned)
    passes = 0

    def interrupt(_count: int) -> None:
        nonlocal passes
        passes += 1
        if passes == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_back_losses(tuned, base, WINDOWS, ROWS, done=interrupt)
    assert passes == stop
    assert_untouched(tuned, before)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_model_is_the_same_after_an_error_within_a_pass(adapters: bool) -> None:
    """Raised in the last block while others are put back, where a half restored model would show."""
    base = None if adapters else tiny_model(n_layers=N_LAYERS)
    tuned = tuned_adapters() if adapters else tuned_weights()
    passes = 0

    def fail(_module: Any, _args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise MemoryError("test")

    handle = blocks(tuned)[-1].mlp.register_forward_pre_hook(fail)
    before = state_of(tuned)
    with pytest.raises(MemoryError):
        put_back_losses(tuned, base, [(0, 2), (1, 3)], ROWS, batch_tokens=4096)
    assert_untouched(tuned, before)
    handle.remove()


# --- scores ---


def as_rises(values: np.ndarray[Any, Any]) -> Callable[..., Any]:
    """Stands for the losses, so that the statistics are tested on known ones: rises (n_windows, n_rows)."""

    def losses(*_args: Any, **_settings: Any) -> np.ndarray[Any, Any]:
        return np.concatenate([np.zeros((1, values.shape[1])), values])

    return losses


def test_a_score_is_the_mean_rise_and_its_interval_students_t_as_in_scipy() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tuned_weights()
    tasks = {"a": make_rows(5, seed=1), "b": make_rows(7, seed=2)}
    single = windows(N_LAYERS, 1)
    for confidence in (0.8, 0.95):
        scores = put_back(tuned, base, single, tasks, confidence=confidence, batch_tokens=1)
        assert [s.task for s in scores] == ["a", "b", "*"]
        for score, rows in zip(scores, tasks.values(), strict=False):
            losses = put_back_losses(tuned, base, single, rows, batch_tokens=1)
            assert score.layers == block_names(N_LAYERS)
            assert score.low is not None
            assert score.high is not None
            assert (score.name, score.n) == ("causal", len(rows))
            for i in range(N_LAYERS):
                if i == UNTUNED:
                    assert (score.values[i], score.low[i], score.high[i]) == (0, 0, 0)
                    continue
                paired = stats.ttest_rel(losses[i + 1], losses[0]).confidence_interval(confidence)
                one = stats.ttest_1samp(losses[i + 1] - losses[0], 0).confidence_interval(confidence)
                assert score.values[i] == pytest.approx(float((losses[i + 1] - losses[0]).mean()))
                assert (score.low[i], score.high[i]) == pytest.approx(tuple(map(float, paired)))
                assert (score.low[i], score.high[i]) == pytest.approx(tuple(map(float, one)))


def test_over_all_tasks_stands_the_median_which_one_task_with_a_huge_rise_does_not_move() -> None:
    rng = np.random.default_rng(0)
    rises = {
        name: rng.normal(level, 0.01, (3, 6)) for name, level in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)
    }
    score = causal_scores(rises)[-1]
    assert (score.task, score.n) == ("*", 30)
    assert score.values == pytest.approx(tuple(rises["c"].mean(axis=1)))
    rises["e"] = rises["e"] + 100
    assert causal_scores(rises)[-1].values == score.values


def test_the_interval_over_all_tasks_is_the_one_of_a_naive_bootstrap_over_tasks_and_rows() -> None:
    rng = np.random.default_rng(1)
    rises = {str(i): rng.normal(0.3 * rng.standard_normal(), 0.5, (2, int(rng.integers(4, 9)))) for i in range(7)}
    score = causal_scores(rises, confidence=0.9, n_bootstrap=4000, seed=3)[-1]
    tables, naive = list(rises.values()), []
    for _ in range(4000):
        drawn = [tables[i] for i in rng.integers(7, size=7)]
        naive.append(
            np.median(
                [table[:, rng.integers(table.shape[1], size=table.shape[1])].mean(axis=1) for table in drawn], axis=0
            )
        )
    low, high = np.quantile(naive, [0.05, 0.95], axis=0)
    assert score.low == pytest.approx(low.tolist(), abs=0.05)
    assert score.high == pytest.approx(high.tolist(), abs=0.05)
    assert causal_scores(rises, seed=3) == causal_scores(rises, seed=3) != causal_scores(rises, seed=4)


def test_one_task_is_all_tasks() -> None:
    table = np.random.default_rng(0).normal(1, 1, (3, 40))
    own, every = causal_scores({"a": table})
    assert own.values == every.values
    assert every.low == pytest.approx(own.low, abs=0.15) and every.high == pytest.approx(own.high, abs=0.15)


@pytest.mark.parametrize(
    ("rises", "more", "said"),
    [
        ({}, {}, "need a table"),
        ({"a": np.zeros((2, 0))}, {}, "need a table"),
        ({"a": np.zeros(2)}, {}, "need a table"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, {}, r"different numbers of blocks: \[2, 3\]"),
        ({"a": np.zeros((2, 3))}, {"n_bootstrap": 0}, "n_bootstrap 0"),
        ({"a": np.zeros((2, 3))}, {"confidence": 1.0}, "confidence 1.0"),
    ],
)
def test_rises_that_make_no_scores_are_refused(rises: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        causal_scores(rises, **more)


def test_a_rise_is_divided_among_the_blocks_and_averaged_over_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    rises = np.array([[6.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    monkeypatch.setattr("tunescope.layers.causal.put_back_losses", as_rises(rises))
    score = put_back(tiny_model(n_layers=4), None, [(0, 2), (1, 4), (3, 4)], {"a": make_rows(2)})[0]
    per_row = [rises[0] / 2, (rises[0] / 2 + rises[1] / 3) / 2, rises[1] / 3, (rises[1] / 3 + rises[2]) / 2]
    assert score.values == pytest.approx([row.mean() for row in per_row])


def test_windows_side_by_side_keep_the_whole_rise() -> None:
    base, tuned = tiny_model(n_layers=N_LAYERS), tuned_weights()
    losses = put_back_losses(tuned, base, [(0, 2), (2, 4)], ROWS)
    values = put_back(tuned, base, [(0, 2), (2, 4)], {"a": ROWS})[0].values
    rises = (losses[1:] - losses[0]).mean(axis=1)
    assert [sum(values[:2]), sum(values[2:])] == pytest.approx(rises.tolist())
    assert values[0] == values[1]


def test_a_block_that_learned_the_task_has_the_rise() -> None:
    base, tuned = tiny_model(n_layers=3), tiny_model(n_layers=3)
    rows = make_rows(12)
    block = blocks(tuned)[1].requires_grad_(True)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
    for _ in range(15):
        token_losses(tuned, *pad_right(rows))[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.requires_grad_(False)
    learned = float((mean_losses(base, rows) - mean_losses(tuned, rows)).mean())
    score = put_back(tuned, base, windows(3, 1), {"a": rows})[0]
    assert learned > 0.3
    assert score.low is not None
    assert score.values[1] == pytest.approx(learned)
    assert score.low[1] > 0
    assert (score.values[0], score.values[2]) == (0, 0)


def test_one_row_has_no_interval() -> None:
    scores = put_back(tuned_adapters(), None, windows(N_LAYERS, 1), {"a": ROWS[:1], "b": ROWS})
    assert [(s.low is None, s.high is None) for s in scores] == [(True, True), (False, False), (True, True)]


def test_progress_counts_the_rows_of_every_pass() -> None:
    counts: list[int] = []
    put_back(
        tuned_adapters(), None, windows(N_LAYERS, 2), {"a": ROWS, "b": ROWS[:2]}, batch_tokens=32, done=counts.append
    )
    assert sum(counts) == (len(windows(N_LAYERS, 2)) + 1) * (len(ROWS) + 2)
    assert len(counts) > len(windows(N_LAYERS, 2)) + 1


# --- windows ---


@given(n_layers=st.integers(1, 60), data=st.data())
def test_windows_are_of_one_width_and_cover_every_block(n_layers: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, n_layers))
    stride = data.draw(st.integers(1, width))
    found = windows(n_layers, width, stride)
    assert {i for start, stop in found for i in range(start, stop)} == set(range(n_layers))
    assert {stop - start for start, stop in found} == {width}
    starts = [start for start, _ in found]
    assert (starts[0], found[-1][1]) == (0, n_layers)
    assert all(1 <= b - a <= stride for a, b in itertools.pairwise(starts))
    assert all(b - a == stride for a, b in itertools.pairwise(starts[:-1]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((4, 0), "window of 0 blocks: the model has 4; allowed: 1 to 4"),
        ((4, 5), "window of 5 blocks"),
        ((4, 2, 0), "stride 0: allowed is 1 to the width 2"),
        ((4, 2, 3), "stride 3: allowed is 1 to the width 2, or blocks would lie in no window"),
    ],
)
def test_windows_that_leave_blocks_out_are_refused(settings: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        windows(*settings)


# --- what is refused ---


def one_line(error: type[Exception], said: str, *arguments: Any) -> None:
    with pytest.raises(error, match=said) as caught:
        put_back(*arguments)
    assert "\n" not in str(caught.value)


TASKS = {"a": ROWS}
SINGLE = windows(N_LAYERS, 1)


def resized(**settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**tiny_model(n_layers=N_LAYERS).config.to_dict(), **settings})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            lambda: tiny_model(n_layers=3),
            "different architectures: num_hidden_layers 4 and 3; give the base it was tuned from",
        ),
        (lambda: tiny_model(n_layers=N_LAYERS, d_model=48), "hidden_size 32 and 48, intermediate_size 64 and 96"),
        (lambda: resized(vocab_size=261), "vocab_size 260 and 261"),
        (lambda: tiny_model("qwen2", n_layers=N_LAYERS), "model_type llama and qwen2"),
        (
            lambda: tiny_model(n_layers=N_LAYERS, dtype=torch.bfloat16),
            r"block\.0 .* torch\.float32 on cpu in the tuned model and .* torch\.bfloat16 on cpu in the base: load both alike",
        ),
        (tuned_weights, "no block of the tuned model differs from the base: was the base given twice"),
        (tuned_adapters, r"block\.0 .* is in only one of the models: for a model with adapters leave the base out"),
        (lambda: None, "no adapters in its blocks: pass the base model"),
    ],
)
def test_a_base_of_another_kind_is_refused(base: Callable[[], Any], said: str) -> None:
    one_line(ModelError, said, tuned_weights(), base(), SINGLE, TASKS)


def test_adapters_that_cannot_be_switched_off_are_refused() -> None:
    merged = tuned_adapters()
    merged.merge_adapter()
    one_line(
        ModelError, r"adapters of block\.0 self_attn\.q_proj are merged .*unmerge them", merged, None, SINGLE, TASKS
    )
    merged.unmerge_adapter()
    assert put_back(merged, None, SINGLE, TASKS)
    biased = tuned_adapters(bias="lora_only")
    one_line(ModelError, "also tuned biases of the base, which switching off leaves tuned", biased, None, SINGLE, TASKS)


def test_a_model_in_training_mode_is_refused() -> None:
    tuned = tuned_adapters(lora_dropout=0.5).train()
    one_line(
        ModelError,
        r"in training mode, in which dropout changes the losses: call \.eval\(\) first",
        tuned,
        None,
        SINGLE,
        TASKS,
    )
    assert tuned.training


@pytest.mark.parametrize(("where", "said"), [("base", "with 2-2 put back"), ("tuned", "as tuned")])
def test_a_loss_that_is_no_number_is_refused(where: str, said: str) -> None:
    models = {"base": tiny_model(n_layers=N_LAYERS), "tuned": tuned_weights()}
    with torch.no_grad():
        blocks(models[where])[2].mlp.up_proj.weight[0, 0] = torch.nan
    before = state_of(models["tuned"])[1]
    one_line(
        ModelError, f"the loss of row 0 is nan {said}: look for NaN", models["tuned"], models["base"], SINGLE, TASKS
    )
    assert state_of(models["tuned"])[1] == before


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"a": ROWS, "b": [], "c": []}, "needs rows of every task, got none for b, c"),
        ({}, "needs rows of every task, got none for any task"),
    ],
)
def test_a_task_without_rows_is_refused(tasks: dict[str, list[Encoded]], said: str) -> None:
    one_line(UserError, said, tuned_adapters(), None, SINGLE, tasks)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([(0, 4), (3, 5)], r"window \(3, 5\): wanted 0 <= first < one past the last <= 4"),
        ([(0, 4), (-1, 2)], r"window \(-1, 2\)"),
        ([(0, 4), (2, 2)], r"window \(2, 2\)"),
        ([(0, 1), (3, 4)], r"2 blocks lie in no window, the first is block\.1"),
        ([], r"4 blocks lie in no window, the first is block\.0"),
    ],
)
def test_windows_that_do_not_fit_the_model_are_refused(chosen: list[tuple[int, int]], said: str) -> None:
    one_line(UserError, said, tuned_adapters(), None, chosen, TASKS)
