"""Look at all data files of a config, and change nothing."""

from __future__ import annotations

from tunescope.config import Config
from tunescope.data import ChatFormat, DataReport
from tunescope.errors import ModelError
from tunescope.models import load_tokenizer
from tunescope.studies.inputs import encode_inputs, read_inputs


def run(config: Config) -> tuple[DataReport, str | None]:
    """Checks the files; lengths, control tokens and the rendered row need the model's tokenizer.

    Args:
        config: the settings.

    Returns:
        The report, and a note where the model is not at hand, so that those checks were left out.
    """
    inputs = read_inputs(config)
    try:
        chat = ChatFormat(load_tokenizer(config.model, revision=config.revision))
    except ModelError as error:
        return inputs.report, f"lengths and the rendered row were not checked, since the model is not at hand: {error}"
    return encode_inputs(config, inputs, chat).report, None
