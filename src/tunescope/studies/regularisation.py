"""From settings to what keeps tuning near the base model: prompts that vary, and terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunescope import engine
from tunescope.config import Config
from tunescope.data import Augmentation, ChatFormat, Encoded, Example, vary
from tunescope.errors import ConfigError, DataError
from tunescope.studies.demonstrations import encode_training, in_training
from tunescope.studies.inputs import Inputs, encode_all

Rows = Sequence[Encoded] | Callable[[int], Sequence[Encoded]]


class VaryingRows:
    """Encoded training examples as a function of the epoch, from 0; the last epoch asked for is kept.

    An example that would be longer than ``data.max_length`` with drawn demonstrations gets as many of them as fit. Those of the task's
    own `demonstrations` always stand before it.

    Args:
        config: the settings.
        inputs: the tasks; demonstrations of an example come from its own.
        chat: encodes.
        how: what varies.
    """

    def __init__(self, config: Config, inputs: Inputs, chat: ChatFormat, how: Augmentation) -> None:
        self._chat, self._how, self._max_length = chat, how, config.data.max_length
        self._pools = {task.name: task.train for task in inputs.tasks}
        self._examples = inputs.train
        self._fixed = in_training(config, inputs.tasks)
        self._kept: tuple[int, list[Encoded]] | None = None

    def __call__(self, epoch: int) -> list[Encoded]:
        """Returns the rows of an epoch, in the order of the examples.

        Raises:
            ConfigError: a template, or noise, made a prompt too long.
            DataError: a template contains a control token of the model.
        """
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, [self._row(example, epoch) for example in self._examples])
        return self._kept[1]

    def _row(self, example: Example, epoch: int) -> Encoded:
        varied = vary(example, self._how, epoch=epoch, pool=self._pools[example.task])
        fixed = self._fixed(example)
        for count in range(len(varied.demonstrations), -1, -1):
            row = self._chat.encode(varied.example, demonstrations=(*fixed, *varied.demonstrations[:count]))
            if len(row) <= self._max_length:
                return row
        raise ConfigError(
            f"{example.file}:{example.line}: with the instruction {varied.example.instruction[:60]!r} the example has {len(row)} tokens, "
            f"allowed: {self._max_length} (data.max_length); shorten the task's templates, lower tuning.regularisation.noise_fraction to 0, or "
            "raise the limit"
        )


def training_rows(config: Config, inputs: Inputs, chat: ChatFormat) -> Rows:
    """Returns the encoded training examples, or a function of the epoch where their prompts vary."""
    settings = config.tuning.regularisation
    templates = {task.name: task.templates for task in config.tasks}
    how = Augmentation(config.seed, templates, settings.demonstrations, settings.noise_fraction)
    return (
        VaryingRows(config, inputs, chat, how)
        if how.varies
        else encode_training(config, inputs.tasks, chat, inputs.train)
    )


def rows_of(rows: Rows, epoch: int) -> Sequence[Encoded]:
    """Returns the rows of one epoch."""
    return rows(epoch) if callable(rows) else rows


def longest(config: Config, inputs: Inputs, chat: ChatFormat, rows: Rows) -> int:
    """Returns the tokens of the longest text that tuning will read, in any epoch or for a term of the loss.

    Where prompts vary that encodes every epoch once more: a wording that does not fit is an error before anything is tuned.

    Raises:
        ConfigError: a template, or noise, made a prompt too long.
        DataError: a template contains a control token of the model.
    """
    epochs = range(config.tuning.num_epochs if callable(rows) else 1)
    replay = encode_all(chat, inputs.replay)
    return max(len(row) for group in (*(rows_of(rows, epoch) for epoch in epochs), replay) for row in group)


def unfit_prompts(config: Config, inputs: Inputs, chat: ChatFormat) -> list[str]:
    """Returns what is wrong with prompts that vary: the problem of `longest`, if any."""
    rows = training_rows(config, inputs, chat)
    try:
        if callable(rows):
            longest(config, inputs, chat, rows)
    except (ConfigError, DataError) as error:
        return list(error.problems)
    return []


def loss_terms(
    config: Config,
    inputs: Inputs,
    chat: ChatFormat,
    moving: engine.Moving,
    states: engine.ActivationCache | None = None,
) -> list[engine.Term]:
    """Returns the terms of the loss that the settings ask for; to be made before anything moves. `states` as for the tuner."""
    settings = config.tuning.regularisation
    terms: list[engine.Term] = []
    if settings.l2_sp:
        terms.append(engine.L2SP(moving, settings.l2_sp))
    if settings.kl_to_base:
        rows = encode_all(chat, inputs.replay)
        terms.append(
            engine.KLToBase(
                moving,
                rows,
                settings.kl_to_base,
                batch_tokens=config.tuning.batch_tokens,
                max_rows=settings.kl_batch_size,
                seed=config.seed,
                states=states,
            )
        )
    return terms
