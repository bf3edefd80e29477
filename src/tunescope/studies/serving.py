"""Which arm is answered by whom: the model here, or one that the user serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunescope import evaluate
from tunescope.config import Arm, Config
from tunescope.data import ChatFormat, Example
from tunescope.errors import ConfigError, ModelError, did_you_mean
from tunescope.evaluate import Answering, Scored
from tunescope.models.endpoint import ChatEndpoint

HERE = "here"
ANSWERED = "answered by"
"""Event of the ledger."""


class Server:
    """The model on a server that answers for one arm.

    Args:
        config: the settings, with an address.
        model: its name there.

    Attributes:
        name: model and address, as kept with every answer; without the key.
    """

    def __init__(self, config: Config, model: str) -> None:
        self._config = config
        self._model = model
        self.name = f"{model} at {config.generation.endpoint}"

    def batches(
        self, chat: ChatFormat, examples: Sequence[Example], how: Answering, known: dict[int, Any]
    ) -> Iterator[evaluate.Batch]:
        """Asks what is not known yet, and gives the answers as they come.

        Raises:
            ModelError: the server cannot be reached, refuses, or answers nonsense; what it answered before was given.
        """
        try:
            ask = self.endpoint(how.max_new_tokens, how.stop).replies
            yield from evaluate.served_batches(ask, chat, examples, how, answered_by=self.name, known=known)
        except ModelError as error:
            raise ModelError(f"{error}; the answers so far are kept: go on with --resume") from None

    def endpoint(self, max_tokens: int, stop: Sequence[str] = ()) -> ChatEndpoint:
        """Returns a client for answers of at most so many tokens."""
        settings = self._config.generation
        assert settings.endpoint is not None
        more: dict[str, Any] = {"stop": list(stop)} if stop else {}
        if settings.template_arguments:
            more["chat_template_kwargs"] = dict(settings.template_arguments)
        return ChatEndpoint(
            settings.endpoint,
            self._model,
            api_key_variable=settings.api_key_variable,
            max_tokens=max_tokens,
            timeout_seconds=settings.timeout_seconds,
            max_attempts=settings.max_attempts,
            concurrency=settings.concurrency,
            more=more,
        )


def server_of(config: Config, arm: str) -> Server | None:
    """Returns the server that answers for an arm, or None where that is done here.

    Example:
        >>> from tunescope.config import validate
        >>> served = {"endpoint": "http://127.0.0.1:8000/v1", "model": "base"}
        >>> config = validate({"tasks": [{"name": "desk", "metric": "rouge_l"}], "generation": served}, source="a.yaml")
        >>> server_of(config, "nothing").name, server_of(config, "selected")
        ('base at http://127.0.0.1:8000/v1', None)
    """
    settings = config.generation
    if settings.endpoint is None:
        return None
    base = settings.model if arm in (Arm.NOTHING, Arm.PROMPT) else None
    model = settings.arms.get(arm, base)
    return Server(config, model) if model is not None else None


def check_serving(config: Config, chat: ChatFormat, arms: Sequence[str], *, knock: bool = True) -> None:
    """Refuses a server that cannot answer for the arms, before anything is written or takes long.

    Args:
        config: the settings.
        chat: chat format of the model here.
        arms: those of the study whose weights exist before it begins.
        knock: look whether the server is there.

    Raises:
        ConfigError: a model is named for something that is no such arm.
        ModelError: the model here has no chat template, or the server cannot be reached or refuses the key.
    """
    settings = config.generation
    if settings.endpoint is None:
        return
    problems = [
        f"generation.arms: got {arm!r}{did_you_mean(arm, list(arms))}; a server can answer for {', '.join(arms)} here. Weights that a run "
        "tunes are served afterwards, and measured with `tunescope evaluate --arm NAME=FOLDER`"
        for arm in settings.arms
        if arm not in arms
    ]
    if problems:
        raise ConfigError(problems)
    servers = [server for arm in arms if (server := server_of(config, arm)) is not None]
    if servers and not chat.templated:
        raise ConfigError(
            "generation.endpoint: the model has no chat template, so the arms here are asked by plain text, and a server asks by chat; leave "
            "it out, or use a model with a chat template"
        )
    if servers and knock:
        servers[0].endpoint(config.evaluation.max_new_tokens).knock()


def described(config: Config) -> dict[str, Any] | None:
    """Returns what ``environment.json`` says about the server; None without one."""
    settings = config.generation
    if settings.endpoint is None:
        return None
    return {
        "endpoint": settings.endpoint,
        "model": settings.model,
        "arms": dict(settings.arms),
        "template_arguments": dict(settings.template_arguments),
    }


def answered_by(config: Config, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Returns who answered: a row per arm, task with free answers, and model; nothing where no server is set.

    Args:
        config: the settings.
        scored: the answers.
    """
    if config.generation.endpoint is None:
        return []
    counts: dict[tuple[str, str, str], int] = {}
    for item in scored:
        for arm, answers in item.answers.items() if item.labels is None and item.role != "guard" else ():
            for given in answers:
                key = (arm, item.task, given.answered_by or HERE)
                counts[key] = counts.get(key, 0) + 1
    return [{"arm": arm, "task": task, "by": by, "answers": n} for (arm, task, by), n in counts.items()]
