"""The base model of a study: whole in memory, or from its lowest moving block on where it is larger than it may be."""

from __future__ import annotations

from collections.abc import Callable

from tunescope import engine, models, select
from tunescope.config import Arm, Config
from tunescope.errors import ConfigError, ModelError
from tunescope.models import Loaded, Located, Sizes, StreamedBase

_TAIL_ARMS = (Arm.NOTHING, Arm.PROMPT, Arm.SELECTED, Arm.TOP_THIRD)


def load_base(
    config: Config, located: Located, device: str, *, note: Callable[[str], None] = lambda text: None
) -> Loaded:
    """Loads a fresh copy of the base.

    Of a base larger than `engine.memory_bytes` only the blocks from the lowest one in `selection.blocks` on are held. Those below are read
    from disk one after the other whenever a pass needs them, so that everything that runs on a whole model runs on this one.

    Args:
        config: the settings.
        located: the model's files.
        device: torch device.
        note: told, where memory is limited, whether the base is held.

    Raises:
        ConfigError: a base that is too large cannot be tuned with these settings, or the blocks that have to be held are too large too.
        ModelError: the model cannot be loaded, or not block by block.
    """
    if config.engine.memory_bytes is None:
        return models.load_located(located, dtype=config.dtype, device=device)
    sizes = StreamedBase(located, dtype=config.dtype, device=device).sizes
    streamed, why = engine.must_stream(sizes.whole, config.engine.memory_bytes)
    note(why)
    if not streamed:
        return models.load_located(located, dtype=config.dtype, device=device)
    if problems := _unfit_for_streaming(config):
        raise ConfigError([f"{why}; {problem}" for problem in problems])
    lowest = _lowest_named(config, len(sizes.blocks))
    _refuse_too_large(config, sizes, lowest)
    return models.load_tail(located, lowest, dtype=config.dtype, device=device, read_below=True)


def load_ends(config: Config, located: Located, device: str) -> tuple[Loaded, StreamedBase]:
    """Loads the ends of the base alone, for processes that will hold a part of every block each.

    Args:
        config: the settings.
        located: the model's files.
        device: torch device.

    Returns:
        The base, and where its blocks are read.

    Raises:
        ModelError: the model cannot be loaded block by block.
    """
    base = StreamedBase(located, dtype=config.dtype, device=device)
    base.keep_ends()
    return base.loaded(base.sizes.whole - sum(base.sizes.blocks)), base


def is_streamed(loaded: Loaded) -> bool:
    """Says whether only the last blocks of a base are in memory."""
    return models.lowest_block(loaded.model) > 0


def _unfit_for_streaming(config: Config) -> list[str]:
    """What in the settings cannot be done with the last blocks alone."""
    problems = []
    if not config.selection.blocks:
        problems.append(
            "selection.blocks has to say which blocks move, such as [block.28-31], since a score that chooses them would need the whole base"
        )
    if others := [arm.value for arm in config.arms if arm not in _TAIL_ARMS]:
        problems.append(
            f"arms {', '.join(others)} move blocks that are not held; allowed are {', '.join(_TAIL_ARMS)}, or raise engine.memory_bytes"
        )
    if not config.engine.keep_states:
        problems.append("engine.keep_states is false, and such a base is tuned from kept states; set it to true")
    if (workers := config.engine.ray.workers) > 1:
        problems.append(
            f"engine.ray.workers is {workers}, and that is for one process; set it to 1, or leave engine.memory_bytes out and share the base "
            "between the workers with engine.ray.sharding: fsdp2"
        )
    return problems


def _lowest_named(config: Config, n_layers: int) -> int:
    names = models.block_names(n_layers)
    try:
        found = select.match_layers(config.selection.blocks or (), names)
    except ModelError as error:
        raise ConfigError([f"selection.blocks: {problem}" for problem in error.problems]) from None
    return min(names.index(name) for name in found)


def _refuse_too_large(config: Config, sizes: Sizes, lowest: int) -> None:
    held, allowed = sizes.tail(lowest) + sizes.largest, config.engine.memory_bytes or 0
    if held > allowed:
        raise ConfigError(
            f"engine.memory_bytes allows {allowed / 1e9:.3g} GB, and the weights from block.{lowest} on, with the largest piece of those below, "
            f"take {held / 1e9:.3g}; choose higher blocks in selection.blocks, or raise it"
        )
