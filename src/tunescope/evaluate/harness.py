"""Runs tasks of lm-evaluation-harness on a model of ours; needs the extra ``lm-eval``.

The harness brings tasks, prompts and metrics; the numbers come from the same forward passes as everything else here, so they do not
depend on the batch, and adapters, changed weights and sparse entries are asked as they are, without being merged or exported first.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunescope.errors import ConfigError, ModelError
from tunescope.evaluate.stopping import ends_at
from tunescope.models import Tokens, answer_logprobs, bare, greedy

LOCAL = ("json", "csv", "parquet", "text", "arrow")
"""Readers of data that lies on the machine; with any other `dataset_path` a task would be fetched from a hub."""
_MISSING = "lm-evaluation-harness is not installed; install it with  pip install 'tunescope[lm-eval]'"


def harness_model(model: Any, tokenizer: Any, *, batch_tokens: int = 2048) -> Any:
    """Wraps a model so that lm-evaluation-harness can ask it: ``lm_eval.simple_evaluate(model=harness_model(...), ...)``.

    Args:
        model: the model, PEFT-wrapped or not, in evaluation mode.
        tokenizer: its Hugging Face tokenizer.
        batch_tokens: tokens per forward pass; changes speed and memory, never a score.

    Returns:
        An ``lm_eval.api.model.LM``. Its attribute ``truncated`` counts the requests that were longer than the model reads and lost tokens
        on the left, as with the harness's own models.

    Raises:
        ConfigError: the extra is not installed.

    Source:
        The interface is that of lm-evaluation-harness 0.4 (`TemplateLM`); what a request means, token by token, follows its `HFLM`.
    """
    return _adapter()(model, tokenizer, batch_tokens)


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Path],
    *,
    batch_tokens: int = 2048,
    limit: int | None = None,
    chat: bool = False,
    samples: bool = False,
) -> dict[str, Any]:
    """Runs tasks of lm-evaluation-harness whose data lies on this machine; nothing is fetched, and no code from a task file is run.

    Args:
        model: the model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        tasks: YAML files of the harness; `data_files` in them are relative to the file.
        batch_tokens: tokens per forward pass.
        limit: use at most this many examples of each task; None: all.
        chat: ask through the model's chat template.
        samples: keep every example with its answer under ``samples``.

    Returns:
        ``results``: task -> metric -> value, as the harness names them; ``n``: task -> number of examples; ``truncated``: requests that were
        too long; ``harness``: its version; and ``samples``, if asked for.

    Raises:
        ConfigError: the extra is not installed, a file is no task, its data is not local, or it names code to run.
    """
    configs = read_tasks(tasks)
    wrapped = harness_model(model, tokenizer, batch_tokens=batch_tokens)
    with tempfile.TemporaryDirectory(prefix="tunescope-lm-eval-") as scratch, _offline():
        found = _evaluate(wrapped, configs, scratch, limit=limit, chat=chat)
    values = {
        task: {
            name: value
            for name, value in rows.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, rows in found["results"].items()
    }
    counts = {task: int(n["effective"]) for task, n in found["n-samples"].items()}
    kept = {"samples": found["samples"]} if samples else {}
    return {"results": values, "n": counts, "truncated": wrapped.truncated, "harness": _version(), **kept}


def check_installed() -> None:
    """Refuses to go on without the extra.

    Raises:
        ConfigError: it is not installed.
    """
    _adapter()


def read_tasks(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads task files as `read_task` does and names all problems at once.

    Args:
        paths: the YAML files.

    Raises:
        ConfigError: a file is no task with local data, or two have one name.
    """
    configs: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in paths:
        try:
            configs.append(read_task(path))
        except ConfigError as error:
            problems += error.problems
    names = [config["task"] for config in configs]
    problems += [
        f"task {name!r} is given twice; give each file once" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if problems:
        raise ConfigError(problems)
    return configs


def read_task(path: Path) -> dict[str, Any]:
    """Reads a task file of the harness and makes its data files absolute.

    Args:
        path: the YAML file.

    Returns:
        The task's settings.

    Raises:
        ConfigError: it cannot be read, is no task, its data is not local, or it names code to run.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        code = (
            "; it names code to run (!function), which is not done here: write it as a template"
            if "!function" in why
            else ""
        )
        raise ConfigError(f"{path}: not a plain YAML task{code} ({why[:200]})") from None
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise ConfigError(
            f"{path}: not a task of lm-evaluation-harness (it has no `task: NAME`; groups and lists are not read)"
        )
    if "include" in config:
        raise ConfigError(f"{path}: `include` is not followed; write the settings into one file")
    reader = config.get("dataset_path")
    if reader not in LOCAL and not (isinstance(reader, str) and (path.parent / reader).is_dir()):
        raise ConfigError(
            f"{path}: task {config['task']!r} reads {reader!r}, which is not on this machine; only local data is read: dataset_path "
            f"{', '.join(LOCAL)} with dataset_kwargs.data_files, or a folder"
        )
    settings = dict(config.get("dataset_kwargs") or {})
    if reader not in LOCAL:
        config["dataset_path"] = str((path.parent / reader).resolve())
    elif "data_files" not in settings:
        raise ConfigError(f"{path}: task {config['task']!r} names no dataset_kwargs.data_files")
    else:
        settings["data_files"] = _absolute(settings["data_files"], path)
    return config | {"dataset_kwargs": settings}


def pair_logprobs(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_tokens: int = 2048
) -> list[tuple[float, bool]]:
    """Returns the log-probability of every continuation after its own context, and whether greedy decoding would give it.

    A context that several requests share, as the choices of one question do, is read once.

    Args:
        model: the model, PEFT-wrapped or not.
        pairs: token ids of context and continuation; neither may be empty.
        batch_tokens: tokens per forward pass.

    Returns:
        Per pair the sum over the continuation's tokens in nats, and the flag.

    Raises:
        ModelError: a context or a continuation has no token.

    Example:
        >>> from tunescope.testing import tiny_model
        >>> [(value, likely)] = pair_logprobs(tiny_model(), [([104, 105], [33])])
        >>> value < 0, isinstance(likely, bool)
        (True, True)
    """
    empty = [i for i, (context, continuation) in enumerate(pairs) if not context or not continuation]
    if empty:
        raise ModelError(f"request {empty[0]}: context or continuation has no token; give both at least one")
    rows = [Tokens(tuple(context), tuple(continuation)) for context, continuation in pairs]
    logs, likeliest = answer_logprobs(model, rows, batch_tokens=batch_tokens)
    return list(zip(logs.tolist(), likeliest.tolist(), strict=True))


@functools.cache
def _adapter() -> Any:
    """The class that the harness asks; made here because its base is in the extra."""
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise ConfigError(_MISSING) from None

    class HarnessModel(TemplateLM):
        """A model of ours behind the harness's interface."""

        def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
            super().__init__()
            self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
            self.max_length = int(getattr(bare(model).config, "max_position_embeddings", 2048))
            self.truncated = 0

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            first = self.tokenizer.bos_token_id
            return self.eot_token_id if first is None else int(first)

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False  # the text begins with what the tokenizer would put there
            more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(self.tokenizer.encode(string, **more))

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return pair_logprobs(self.model, [self._fit(c, a) for _, c, a in requests], batch_tokens=self.batch_tokens)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            settings = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length, "context_len": 1}
            windows = [
                [
                    utils.make_disjoint_window(w)
                    for w in utils.get_rolling_token_windows(self.tok_encode(text), **settings)
                ]
                for text in (request.args[0] for request in requests)
            ]
            values = iter(
                pair_logprobs(self.model, [w for found in windows for w in found], batch_tokens=self.batch_tokens)
            )
            return [sum(next(values)[0] for _ in found) for found in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return _generate(self, [request.args for request in requests])

        def _fit(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
            over = len(context) + len(continuation) - (self.max_length + 1)
            if over <= 0:
                return context, continuation
            if over >= len(context):
                raise ModelError(
                    f"a continuation of {len(continuation)} tokens is longer than the {self.max_length} that the model reads"
                )
            self.truncated += 1
            return context[over:], continuation

    return HarnessModel


def _generate(harness: Any, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Generates greedily, requests of one length limit together; each ends at its first stop text, which is cut off."""

    def decode(ids: Sequence[int]) -> str:
        text: str = harness.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    texts = [""] * len(requests)
    stops = [_stops(settings) for _, settings in requests]
    hidden = frozenset(harness.tokenizer.all_special_ids)
    over = {own: ends_at(decode, own, hidden=hidden) for own in set(stops)}
    limits = [int(settings.get("max_gen_toks", 256)) for _, settings in requests]
    for _, settings in requests:
        if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
            raise ConfigError(
                f"the task asks for sampling ({dict(settings)}); answers are generated greedily here: set do_sample to false"
            )
    for limit in sorted(set(limits)):
        mine = [i for i, own in enumerate(limits) if own == limit]
        prompts = [harness.tok_encode(requests[i][0]) for i in mine]
        most = harness.max_length - limit
        if most < 1:
            raise ConfigError(
                f"the task asks for {limit} tokens, and the model reads {harness.max_length} in all; lower max_gen_toks"
            )
        harness.truncated += sum(len(prompt) > most for prompt in prompts)
        batches = greedy(
            harness.model,
            [prompt[-most:] for prompt in prompts],
            stop_ids=(harness.eot_token_id,),
            max_new_tokens=limit,
            batch_tokens=harness.batch_tokens,
            ended=functools.partial(_ended, [over[stops[i]] for i in mine]),
        )
        for place, generated in (row for batch in batches for row in batch):
            texts[mine[place]] = _cut(decode(generated.ids), stops[mine[place]])
    return texts


def _ended(over: Sequence[Callable[[Sequence[int]], bool]], place: int, ids: Sequence[int]) -> bool:
    return over[place](ids)


def _stops(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop texts of a request; an empty one stops nothing."""
    until = settings.get("until") or ()
    return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to where the first stop text begins, as the harness cuts; `stopping.cut` goes by where one ends."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _evaluate(
    wrapped: Any, configs: Sequence[Mapping[str, Any]], scratch: str, *, limit: int | None, chat: bool
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = [dict(c) | {"dataset_kwargs": dict(c["dataset_kwargs"]) | {"cache_dir": scratch}} for c in configs]
    found = simple_evaluate(
        model=wrapped,
        tasks=tasks,
        limit=limit,
        bootstrap_iters=0,  # intervals are our own business
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
    )
    assert found is not None
    return dict(found)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No library of Hugging Face looks anything up meanwhile."""
    names = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _absolute(files: Any, path: Path) -> Any:
    if isinstance(files, str):
        return str((path.parent / files).resolve())
    if isinstance(files, Mapping):
        return {split: _absolute(inner, path) for split, inner in files.items()}
    if isinstance(files, list):
        return [_absolute(inner, path) for inner in files]
    raise ConfigError(f"{path}: data_files is {files!r}; write a file, a list, or split: file")


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")
