"""Scores and greedy answers equal the plain computation, and do not depend on how rows are batched."""

import pytest
import torch
from contract import DTYPES, make_prompts
from transformers import AutoConfig, AutoModelForCausalLM

from tunescope.models import common_prefix, continuation_logprobs, greedy, length_batches
from tunescope.models.attention import register
from tunescope.testing import tiny_model

END = 256
# Two that share their first token, one that is the start of another, one of a single token, one of two.
CHOICES = [[105, 116, END], [105, 110, END], [105, 116, 97, 108, END], [END], [104, END]]


def plain_logprobs(model, prompts, choices):
    """One unpadded row at a time, no cache."""
    rows = []
    for prompt in prompts:
        row = []
        for choice in choices:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *choice]])).logits[0].float().log_softmax(-1)
            row.append(sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(choice)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def plain_greedy(model, prompts, max_new_tokens, stop_ids=(END,)):
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
        )[0, len(prompt) :].tolist()
        stopped = out[-1] in stop_ids
        answers.append((tuple(out[:-1] if stopped else out), not stopped))
    return answers


def all_greedy(model, prompts, **settings):
    found = {}
    for batch in greedy(model, prompts, **{"stop_ids": (END,), **settings}):
        for index, generated in batch:
            assert index not in found
            found[index] = (generated.ids, generated.hit_limit)
    return [found[i] for i in range(len(prompts))]


def a_frequent_token(answers):
    """One that comes up in the middle of some answers and not in all, so that rows stop at different steps."""
    counts = {}
    for ids, _ in answers:
        for token in set(ids[1:]):
            counts[token] = counts.get(token, 0) + 1
    return max((n, token) for token, n in counts.items() if n < len(answers))[1]


# --- scoring ---


def test_log_probabilities_equal_the_plain_computation(model, reference, prompts):
    scores = continuation_logprobs(model, prompts, CHOICES)
    assert scores.dtype == torch.float64
    assert scores.shape == (len(prompts), len(CHOICES))
    torch.testing.assert_close(scores, plain_logprobs(reference, prompts, CHOICES), rtol=0, atol=1e-5)
    assert (scores < 0).all()


def test_choices_that_share_tokens_differ_by_what_they_do_not_share(model, reference, prompts):
    it, is_, _, end, _ = continuation_logprobs(model, prompts, CHOICES).T
    assert not torch.allclose(it, is_, atol=1e-2)
    # "it" + end and "ital" + end share two tokens; what is left is P(end | it) against P(al, end | it).
    after = [[*prompt, 105, 116] for prompt in prompts]
    rest = plain_logprobs(reference, after, [[END], [97, 108, END]])
    shared = plain_logprobs(reference, prompts, [[105, 116]])[:, 0]
    scores = continuation_logprobs(model, prompts, CHOICES)
    torch.testing.assert_close(scores[:, [0, 2]], shared[:, None] + rest, rtol=0, atol=1e-5)
    torch.testing.assert_close(end, plain_logprobs(reference, prompts, [[END]])[:, 0], rtol=0, atol=1e-5)


def test_the_probabilities_of_all_one_token_choices_sum_to_one(model, prompts):
    scores = continuation_logprobs(model, prompts, [[i] for i in range(260)])
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(prompts), dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["given", "reversed"])
def test_a_choice_scores_the_same_beside_any_others(model, prompts, order):
    """Each choice overwrites the keys and values of the one before."""
    together = continuation_logprobs(model, prompts, CHOICES if order == "given" else CHOICES[::-1])
    alone = torch.cat([continuation_logprobs(model, prompts, [choice]) for choice in CHOICES], 1)
    torch.testing.assert_close(together if order == "given" else together.flip(1), alone, rtol=0, atol=1e-5)


def test_a_shared_prefix_changes_nothing(model, monkeypatch):
    for shared, is_shared in ((24, True), (15, False)):
        prompts = make_prompts(rows=5, shared=shared)
        assert (common_prefix(prompts) >= 16) is is_shared
        with_prefix = continuation_logprobs(model, prompts, CHOICES)
        answers = all_greedy(model, prompts, max_new_tokens=6)
        with monkeypatch.context() as patch:
            patch.setattr("tunescope.models.decode._MIN_PREFIX", 10**9 if is_shared else 1)
            torch.testing.assert_close(continuation_logprobs(model, prompts, CHOICES), with_prefix, rtol=0, atol=1e-5)
            assert all_greedy(model, prompts, max_new_tokens=6) == answers


def test_identical_prompts_score_alike(model):
    prompt = make_prompts(rows=1, shared=30)[0]
    scores = continuation_logprobs(model, [prompt] * 3, CHOICES)
    assert torch.equal(scores, scores[:1].expand(3, -1))
    torch.testing.assert_close(scores[:1], continuation_logprobs(model, [prompt], CHOICES), rtol=0, atol=1e-5)


def test_a_prompt_of_one_token_and_a_single_row_work(model, reference):
    for prompts in ([[65]], [[65], [66, 67, 68]], make_prompts(rows=1, shared=40)):
        scores = continuation_logprobs(model, prompts, CHOICES)
        torch.testing.assert_close(scores, plain_logprobs(reference, prompts, CHOICES), rtol=0, atol=1e-5)
        assert all_greedy(model, prompts, max_new_tokens=5) == plain_greedy(reference, prompts, 5)


def test_nothing_to_score_gives_nothing(model, prompts):
    assert continuation_logprobs(model, [], CHOICES).shape == (0, 5)
    assert continuation_logprobs(model, prompts, []).shape == (7, 0)
    assert list(greedy(model, [], stop_ids=(END,), max_new_tokens=3)) == []


@pytest.mark.parametrize("name", DTYPES)
def test_scores_do_not_depend_on_the_batch(family, name):
    """In bfloat16 bit for bit. The width is 96: below 16³ products torch takes another matrix kernel, no real model is that small."""
    model = tiny_model(family, n_layers=2, d_model=96, dtype=DTYPES[name])
    prompts = make_prompts(rows=9, shared=40)
    whole = continuation_logprobs(model, prompts, CHOICES, batch_tokens=10_000)
    variants = [continuation_logprobs(model, prompts, CHOICES, batch_tokens=n) for n in (1, 150, 300)]
    variants.append(continuation_logprobs(model, prompts[::-1], CHOICES, batch_tokens=300).flip(0))
    for variant in variants:
        torch.testing.assert_close(
            variant, whole, **({"rtol": 0, "atol": 0} if name == "bfloat16" else {"rtol": 1e-6, "atol": 1e-5})
        )


def test_a_single_row_with_a_single_token_scores_as_in_a_batch():
    """A mean over one row may be summed in another order than over several; at a width of 576 (SmolLM2's) it is."""
    model = tiny_model("llama", d_model=576, dtype=torch.bfloat16)
    prompts = make_prompts(rows=6, shared=40)
    choices = [[104, END], [105, END]]  # one token is read after the prompt
    assert torch.equal(
        continuation_logprobs(model, prompts, choices, batch_tokens=1), continuation_logprobs(model, prompts, choices)
    )


def test_bfloat16_scores_are_close_to_float32(family, prompts):
    exact = continuation_logprobs(tiny_model(family, d_model=64), prompts, CHOICES)
    rounded = continuation_logprobs(tiny_model(family, d_model=64, dtype=torch.bfloat16), prompts, CHOICES)
    assert (rounded - exact).abs().max() < 0.5
    assert (rounded - exact).abs().max() > 0


def test_progress_counts_every_prompt_once(model, prompts):
    done = []
    continuation_logprobs(model, prompts, CHOICES, batch_tokens=100, done=done.append)
    assert sum(done) == len(prompts)
    assert len(done) > 1


# --- sliding windows ---


@pytest.mark.parametrize("window", [3, 16, 4096])
@pytest.mark.parametrize("family", ["gemma3_text", "qwen2", "mistral"])
def test_windows_shorter_and_longer_than_the_text_are_kept(family, window):
    """Gemma and qwen2 mix windowed and full blocks; mistral's are all windowed."""
    settings = tiny_model("llama").config.to_dict() | {"sliding_window": window, "num_hidden_layers": 3}
    for key in ("model_type", "layer_types", "rope_parameters", "architectures", "transformers_version"):
        settings.pop(key, None)
    if family != "mistral":
        settings["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
        settings["use_sliding_window"] = True
    models = []
    for attention in (register(), "eager"):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **settings)
        assert config.sliding_window == window
        models.append(AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval())
    prompts = make_prompts(rows=4, shared=20)
    scores = continuation_logprobs(models[0], prompts, CHOICES, batch_tokens=200)
    torch.testing.assert_close(scores, plain_logprobs(models[1], prompts, CHOICES), rtol=0, atol=1e-5)
    assert all_greedy(models[0], prompts, max_new_tokens=8) == plain_greedy(models[1], prompts, 8)


def test_a_short_window_hides_what_lies_before_it():
    model = tiny_model("gemma3_text", n_layers=2)
    prompt = make_prompts(rows=1, shared=60)[0]
    changed = [prompt[0] ^ 1, *prompt[1:]]
    scores = {}
    for window in (4, 4096):
        model.config.sliding_window = window
        scores[window] = continuation_logprobs(model, [prompt, changed], CHOICES)
    assert torch.equal(scores[4][0], scores[4][1])
    assert not torch.equal(scores[4096][0], scores[4096][1])


# --- generation ---


def test_greedy_answers_equal_generate(model, reference, prompts):
    wanted = plain_greedy(reference, prompts, 12)
    assert all_greedy(model, prompts, max_new_tokens=12) == wanted
    stop = (a_frequent_token(wanted), END)
    stopped = plain_greedy(reference, prompts, 12, stop)
    assert len({len(ids) for ids, _ in stopped}) > 1
    for batch_tokens in (1, 150, 4096):  # with rows leaving the batch, or not
        assert all_greedy(model, prompts, max_new_tokens=12, stop_ids=stop, batch_tokens=batch_tokens) == stopped


def test_the_limit_is_strict_and_told_apart_from_a_stop(model, prompts):
    free = all_greedy(model, prompts, max_new_tokens=8)
    assert all(len(ids) == 8 and hit for ids, hit in free)
    stop = (a_frequent_token(free),)
    for limit in (1, 2, 5, 8):
        for (ids, hit), (whole, _) in zip(
            all_greedy(model, prompts, max_new_tokens=limit, stop_ids=stop), free, strict=True
        ):
            end = whole.index(stop[0]) if stop[0] in whole else len(whole)
            assert ids == whole[: min(limit, end)]
            assert hit is (end >= limit)


def test_every_stop_token_ends_an_answer_and_is_left_out(model, prompts):
    firsts = {ids[0] for ids, _ in all_greedy(model, prompts, max_new_tokens=1)}
    assert all_greedy(model, prompts, max_new_tokens=5, stop_ids=tuple(firsts)) == [((), False)] * len(prompts)


@pytest.mark.parametrize("name", DTYPES)
def test_answers_do_not_depend_on_the_batch(family, name):
    model = tiny_model(family, n_layers=2, d_model=96, dtype=DTYPES[name])
    prompts = make_prompts(rows=9, shared=40)
    whole = all_greedy(model, prompts, max_new_tokens=10, batch_tokens=10_000)
    stop = (a_frequent_token(whole),)
    wanted = all_greedy(model, prompts, max_new_tokens=10, stop_ids=stop, batch_tokens=10_000)
    assert len({len(ids) for ids, _ in wanted}) > 1
    for settings in ({"batch_tokens": 1}, {"batch_tokens": 300}, {"max_batch": 2}, {"max_batch": 1}):
        assert all_greedy(model, prompts, max_new_tokens=10, stop_ids=stop, **settings) == wanted
    assert all_greedy(model, prompts[::-1], max_new_tokens=10, stop_ids=stop)[::-1] == wanted


def test_scoring_leaves_no_gradient_and_no_change(model, prompts):
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.requires_grad_(True)
    assert not continuation_logprobs(model, prompts, CHOICES).requires_grad
    all_greedy(model, prompts, max_new_tokens=2)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


# --- batches by length ---


def test_batches_by_length_hold_every_row_once_within_the_budget():
    lengths = [len(p) for p in make_prompts(rows=50, shared=0, longest=90)]
    for batch_tokens in (1, 64, 100, 500, 100_000):
        batches = length_batches(lengths, batch_tokens=batch_tokens, max_rows=10)
        assert sorted(i for batch in batches for i in batch) == list(range(50))
        for batch in batches:
            assert len(batch) <= 10
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
        longest = [max(lengths[i] for i in batch) for batch in batches]
        assert longest == sorted(longest, reverse=True)


def test_the_common_prefix_leaves_every_row_a_token_of_its_own():
    assert common_prefix([[1]]) == 0
    assert common_prefix([[1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]) == 2
    assert common_prefix([[1, 2], [3, 2]]) == 0


def test_a_float32_head_tells_apart_what_bfloat16_rounds_to_a_tie():
    model = tiny_model().to(torch.bfloat16)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.mul_(100)  # logits in the hundreds: a bfloat16 step is then larger than most differences
    prompts = [[5, 6, 7], [9, 8]]
    letters = [[token] for token in range(200)]
    rounded = continuation_logprobs(model, prompts, letters)
    exact = continuation_logprobs(model, prompts, letters, float32_head=True)
    assert all(len(set(row)) < len(row) for row in rounded.tolist())
    assert all(len(set(e)) > len(set(r)) for e, r in zip(exact.tolist(), rounded.tolist(), strict=True))
    states = model.model(input_ids=torch.tensor([prompts[0]])).last_hidden_state[0, -1]
    plain = (states.double() @ head.double().T).log_softmax(-1)
    assert (exact[0] - plain[:200]).abs().max() < 1e-3 < (rounded[0] - plain[:200]).abs().max()


def test_a_float32_head_changes_nothing_in_a_float32_model():
    model = tiny_model()
    prompts, letters = [[5, 6, 7], [9, 8]], [[token] for token in range(20)]
    plain = continuation_logprobs(model, prompts, letters)
    torch.testing.assert_close(
        continuation_logprobs(model, prompts, letters, float32_head=True), plain, rtol=0, atol=1e-5
    )
