"""Every error that tunescope raises on purpose, and the exit code that the command line gives it.

::

    TunescopeError                 1
    ├── UserError                  2   what the user gave is wrong; one line per problem, no traceback
    │   ├── ConfigError            2   a setting
    │   ├── DataError              2   a data file or a row
    │   ├── ModelError             2   a model, its files or its layer names
    │   └── RunError               2   a run folder (not empty, newer schema, nothing to resume)
    ├── GateError                  3   a gate that the user set was not passed
    ├── ApprovalError              4   waiting for a person's approval
    ├── IntegrityError             5   a hash, ledger or checkpoint does not match
    └── WorkerError                1   another process of the same tuning is gone
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TunescopeError(Exception):
    r"""Base of all errors raised on purpose.

    Args:
        problems: one line, or several; each says what is wrong, the value got, what is allowed and what to do.

    Example:
        >>> str(UserError(["first problem", "second problem"]))
        'first problem\nsecond problem'
    """

    exit_code = 1

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UserError(TunescopeError):
    """What the user gave is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is wrong."""


class DataError(UserError):
    """A data file or one of its rows is wrong."""


class ModelError(UserError):
    """A model, its files or the names of its layers are wrong."""


class RunError(UserError):
    """A run folder cannot be used in this way."""


class GateError(TunescopeError):
    """A gate that the user set was not passed."""

    exit_code = 3


class ApprovalError(TunescopeError):
    """A plan waits for approval."""

    exit_code = 4


class IntegrityError(TunescopeError):
    """A hash, a ledger or a checkpoint does not match what was recorded."""

    exit_code = 5


class WorkerError(TunescopeError):
    """Another process of the same tuning is gone, or does not answer."""


def did_you_mean(name: str, allowed: Sequence[str], *, limit: int = 3) -> str:
    """Returns `` (did you mean a, b?)`` with the nearest allowed names, or the empty string.

    Example:
        >>> did_you_mean("lora_rnak", ["lora_rank", "seed"])
        ' (did you mean lora_rank?)'
        >>> did_you_mean("zzz", ["seed"])
        ''
    """
    near = difflib.get_close_matches(name, allowed, n=limit, cutoff=0.6)
    return f" (did you mean {', '.join(near)}?)" if near else ""
