"""The settings of several processes and machines (extra `ray`)."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunescope.config.settings import Settings

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):(?P<port>\d{1,5})")


class RaySettings(Settings):
    """Where the pieces of a study run with `engine: ray`; see the page on scale."""

    address: str | None = Field(
        None,
        description="A running cluster: host:port of its head, or auto for the one that this machine belongs to. Default: start one on this "
        "machine, and stop it at the end.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=4096,
        description="Processes that tune one arm together (Ray Train); 1 = each arm is tuned by one process.",
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none",
        description="With several workers: every one holds the whole model (none), or its share of the blocks (fsdp2).",
    )
    cpus_per_task: int | None = Field(
        None,
        ge=1,
        description="CPUs, and so threads, of one process. Default: `threads`; else all of the smallest machine, or its share beside each GPU.",
    )
    gpus_per_task: float | None = Field(
        None,
        ge=0,
        description="GPUs of one process; below 1 several share one. Default: 1 where the cluster has any and `device` is not cpu.",
    )
    max_failures: int = Field(
        3, ge=0, description="How often an arm goes on from its last checkpoint after its process or machine died."
    )

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        found = None if value is None else _ADDRESS.fullmatch(value)
        if value in (None, "auto") or (found and 0 < int(found["port"]) < 65536):
            return value
        raise ValueError(
            f"got {value!r}; give auto, or host:port as `ray start --head` shows it, such as 10.0.0.5:6379 (not ray://, and no http://)"
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        gpus = self.gpus_per_task
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_task: got {gpus:g}; above 1 only whole GPUs can be asked for")
        if self.sharding != "none" and self.workers == 1:
            raise ValueError(
                f"sharding: got {self.sharding} with one worker; set workers to 2 or more, or sharding to none"
            )
        if self.workers > 1 and gpus is not None and gpus not in (0, 1):
            raise ValueError(
                f"gpus_per_task: got {gpus:g} with {self.workers} workers; each worker takes one GPU or none"
            )
        return self
