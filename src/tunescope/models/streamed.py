"""A base of which only some weights are in memory: one block at a time, or the last blocks with the head.

Its modules, names and buffers are those of the whole model, so adapters attach and are saved as ever. A weight that is not in memory is a
tensor on the device ``meta``, and running a module with such weights is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunescope.errors import ModelError
from tunescope.models.attention import register
from tunescope.models.family import Family, bare, blocks, decoder, family_of
from tunescope.models.load import Loaded, Located, ModelInfo, quiet, read_config
from tunescope.models.weight_files import WeightFiles

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """What the weights of a model take in memory, in bytes.

    Attributes:
        embedding: the embedding matrix.
        blocks: each block.
        rest: the final norm.
        head: the head; 0 if it is the embedding matrix.
    """

    embedding: int
    blocks: tuple[int, ...]
    rest: int
    head: int

    @property
    def whole(self) -> int:
        """Everything."""
        return self.embedding + sum(self.blocks) + self.rest + self.head

    @property
    def largest(self) -> int:
        """The most that is in memory at a time while the base is streamed."""
        return max(self.embedding, *self.blocks) if self.blocks else self.embedding

    def tail(self, k: int) -> int:
        """Blocks from `k` on, norm and head.

        Example:
            >>> Sizes(50, (10, 10, 10), 1, 0).tail(2), Sizes(50, (10, 10, 10), 1, 40).tail(2)
            (61, 51)
        """
        return sum(self.blocks[k:]) + self.rest + (self.head or self.embedding)


class StreamedBase:
    """A model without weights in memory, and its files.

    Args:
        located: where the files are.
        dtype: ``float32`` or ``bfloat16``.
        device: where weights go when they are read.

    Attributes:
        model: the Hugging Face model, in evaluation mode.
        family: where its parts are.
        dtype: number format of the weights.
        device: where weights go when they are read.
        sizes: what they take.
        bytes_read: bytes of weights brought into memory so far.

    Raises:
        ModelError: the files cannot be read, are quantised, lack a weight, or are of an unknown family.
    """

    def __init__(self, located: Located, *, dtype: str = "bfloat16", device: str = "cpu") -> None:
        if dtype not in _DTYPES:
            raise ModelError(f"dtype {dtype!r} is not known; allowed: {', '.join(_DTYPES)}")
        quiet()
        self.located = located
        self.dtype = _DTYPES[dtype]
        self.device = torch.device(device)
        self.bytes_read = 0
        self._files = WeightFiles(Path(located.path))
        self.model = _without_weights(located, self.dtype, self.device)
        self.family: Family = family_of(self.model.config.model_type)
        self._sources = self._find_sources()
        # Modules, not their paths: an adapter moves a layer to another place of the tree.
        self._places = {name: self._place(name) for name in self._sources}
        for module in (*blocks(self.model), self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            module.register_forward_pre_hook(_refuse_absent)
        self.sizes = self._measure()
        for name in self._rest():
            self._bring(name)

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Has the weights of a block in memory while it lasts.

        Raises:
            ModelError: a weight cannot be read.
        """
        with self._in_memory(self._names(f"{self.family.blocks}.{index}.")):
            yield

    @contextlib.contextmanager
    def embedding(self) -> Iterator[None]:
        """Has the embedding matrix in memory while it lasts.

        Raises:
            ModelError: it cannot be read.
        """
        with self._in_memory([self._embedding_name()]):
            yield

    def keep_tail(self, k: int) -> None:
        """Brings the blocks from `k` on and the head into memory for good; tied embeddings are there once.

        Args:
            k: the lowest block, up to the number of blocks (then there is no block).

        Raises:
            ModelError: there is no such block, or a weight cannot be read.
        """
        n_layers = len(blocks(self.model))
        if not 0 <= k <= n_layers:
            raise ModelError(f"a tail from block {k} on: this model has block.0 to block.{n_layers - 1}")
        wanted = [self._embedding_name()] if self._tied or k == 0 else []
        wanted += [] if self._tied else [self._head_name()]
        for name in [*wanted, *(n for i in range(k, n_layers) for n in self._names(f"{self.family.blocks}.{i}."))]:
            self._bring(name)

    def keep_ends(self) -> None:
        """Brings the embeddings and the head into memory for good, and no block.

        Raises:
            ModelError: a weight cannot be read.
        """
        for name in [self._embedding_name(), *([] if self._tied else [self._head_name()])]:
            self._bring(name)

    def keep_block(self, index: int) -> None:
        """Brings a block into memory for good; what has been told to move still does.

        Args:
            index: its number.

        Raises:
            ModelError: a weight cannot be read.
        """
        for name in self._names(f"{self.family.blocks}.{index}."):
            self._bring(name)

    @contextlib.contextmanager
    def stand_ins(self) -> Iterator[None]:
        """Puts weights that take no memory in place of those that are absent while it lasts, so that adapters are made as on a whole model.

        PEFT puts an adapter where the weight of its layer lies, and there is nothing on the device ``meta``.
        """
        absent = {name: self._parameter(name) for name in self._sources if self._parameter(name).is_meta}
        try:
            for name, parameter in absent.items():
                zero = torch.zeros((), dtype=parameter.dtype, device=self.device).expand(parameter.shape)
                self._put(name, nn.Parameter(zero, requires_grad=parameter.requires_grad))
            yield
        finally:
            for name, parameter in absent.items():
                self._put(name, parameter)

    def loaded(self, weight_bytes: int) -> Loaded:
        """Returns the model with its tokenizer and facts.

        Args:
            weight_bytes: what of it is in memory, for `ModelInfo`.

        Raises:
            ModelError: there is no readable tokenizer.
        """
        from transformers import AutoTokenizer

        located = self.located
        try:
            tokenizer = AutoTokenizer.from_pretrained(located.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers and transformers each raise their own kinds
            raise ModelError(
                f"{located.path}: has no readable tokenizer ({str(error).splitlines()[0][:200]})"
            ) from None
        info = ModelInfo(
            name=located.name,
            source=located.source,
            folder=located.path,
            revision=located.revision,
            sha256=located.sha256,
            family=self.family.name,
            n_layers=len(blocks(self.model)),
            parameters=self.sizes.whole // self.dtype.itemsize,
            weight_bytes=weight_bytes,
            license=located.license,
        )
        return Loaded(self.model, tokenizer, self.family, info)

    def read_when_run(self) -> None:
        """Lets blocks and embeddings that are not in memory run: each is read when its turn comes, and dropped again.

        A pass then costs one reading of all that is absent: little for a pass of many tokens, much for text that is generated token by token.
        """
        for i, block in enumerate(blocks(self.model)):
            _Reader(partial(self.block, i)).attach(block)
        _Reader(self.embedding).attach(self.model.get_input_embeddings())

    @property
    def _tied(self) -> bool:
        return self.model.get_input_embeddings().weight is self.model.get_output_embeddings().weight

    def _embedding_name(self) -> str:
        return f"{self.family.decoder}.{_path_in(decoder(self.model), self.model.get_input_embeddings())}.weight"

    def _head_name(self) -> str:
        return f"{_path_in(self.model, self.model.get_output_embeddings())}.weight"

    def _names(self, prefix: str) -> list[str]:
        return [name for name in self._sources if name.startswith(prefix)]

    def _rest(self) -> list[str]:
        """The final norm: a few kilobytes that stay in memory, and tell what asks for it the device."""
        others = {self._embedding_name(), self._head_name(), *self._names(f"{self.family.blocks}.")}
        return [name for name in self._sources if name not in others]

    def _find_sources(self) -> dict[str, str]:
        """Name in the model -> name in the files, a tied matrix once; all problems at once."""
        embedding, head = self._embedding_name(), self._head_name()
        prefix = f"{self.model.base_model_prefix}."
        if self._tied and {embedding, head} <= self._files.weights.keys() and not self._files.equal(embedding, head):
            # As transformers does: what the files say counts more than the config.
            self.model.get_output_embeddings().weight = nn.Parameter(
                torch.empty_like(self.model.get_input_embeddings().weight), requires_grad=False
            )
        sources: dict[str, str] = {}
        problems = []
        for name, parameter in self.model.named_parameters():
            candidates = [name, name.removeprefix(prefix), *([head] if self._tied and name == embedding else [])]
            source = next((c for c in candidates if c in self._files), None)
            if source is None or self._files.weights[source].shape != tuple(parameter.shape):
                problems.append(name)
            else:
                sources[name] = source
        if problems:
            raise ModelError(
                f"{self.located.path}: {len(problems)} weights are missing or of another shape, the first is {problems[0]}; "
                "the files are incomplete or belong to another model"
            )
        return sources

    def _measure(self) -> Sizes:
        def size(names: list[str]) -> int:
            return sum(self._files.weights[self._sources[name]].numel for name in names) * self.dtype.itemsize

        return Sizes(
            embedding=size([self._embedding_name()]),
            blocks=tuple(size(self._names(f"{self.family.blocks}.{i}.")) for i in range(len(blocks(self.model)))),
            rest=size(self._rest()),
            head=0 if self._tied else size([self._head_name()]),
        )

    @contextlib.contextmanager
    def _in_memory(self, names: list[str]) -> Iterator[None]:
        absent = {name: self._parameter(name) for name in names}
        try:
            for name in names:
                self._bring(name)
            yield
        finally:
            for name, parameter in absent.items():
                self._put(name, parameter)

    def _parameter(self, name: str) -> nn.Parameter:
        module, leaf = self._places[name]
        found = module._parameters[leaf]
        assert found is not None
        return found

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def _bring(self, name: str) -> None:
        absent = self._parameter(name)
        weight = self._files.read(self._sources[name], dtype=self.dtype, device=self.device)
        self.bytes_read += weight.nbytes
        # What is going to move has been made ready without its numbers: in the format of masters, say.
        self._put(name, nn.Parameter(weight.to(absent.dtype), requires_grad=absent.requires_grad))

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        module, leaf = self._places[name]
        tied = self._tied and name == self._embedding_name()
        module._parameters[leaf] = parameter
        if tied:
            self.model.get_output_embeddings().weight = parameter


class _Reader:
    """Has what a module needs in memory while the module runs."""

    def __init__(self, reading: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._reading = reading
        self._held: contextlib.AbstractContextManager[None] | None = None

    def attach(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._enter, prepend=True)  # before the one that refuses
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if _is_absent(module):
            self._held = self._reading()
            self._held.__enter__()

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)


def load_tail(
    located: Located, k: int, *, dtype: str = "bfloat16", device: str = "cpu", read_below: bool = False
) -> Loaded:
    """Loads the blocks from `k` on, the final norm and the head; the rest takes no memory.

    The model is used with states at the input of block `k` (`run_blocks`). Adapters that lie in its blocks attach, train, load and are
    saved as on the whole model.

    Args:
        located: where the files are.
        k: the lowest block in memory, up to the number of blocks.
        dtype: ``float32`` or ``bfloat16``.
        device: a torch device.
        read_below: a block below `k` that has to run is read for that moment (`StreamedBase.read_when_run`), so that the model can be used
            like a whole one; else running it is an error.

    Returns:
        As of `load_located`; `ModelInfo.parameters` counts the whole model, `ModelInfo.weight_bytes` what is in memory.

    Raises:
        ModelError: the files cannot be read weight by weight, or there is no such block.

    Example:
        >>> import tempfile
        >>> from tunescope.models import locate
        >>> from tunescope.testing import save_tiny
        >>> tail = load_tail(locate(str(save_tiny(Path(tempfile.mkdtemp()), n_layers=4))), 3, dtype="float32")
        >>> lowest_block(tail.model), tail.info.n_layers, tail.info.weight_bytes < 4 * tail.info.parameters
        (3, 4, True)
    """
    base = StreamedBase(located, dtype=dtype, device=device)
    base.keep_tail(k)
    if read_below:
        base.read_when_run()
    return base.loaded(base.sizes.whole if k == 0 else base.sizes.tail(k))


def lowest_block(model: Any) -> int:
    """Returns the number of the lowest block in memory: 0 for a whole model, the number of blocks if there is none.

    Args:
        model: the model, PEFT-wrapped or not.
    """
    found = blocks(model)
    absent = [i for i, block in enumerate(found) if _is_absent(block)]
    return max(absent) + 1 if absent else 0


def _without_weights(located: Located, dtype: torch.dtype, device: torch.device) -> Any:
    """The model with its weights on ``meta`` and its buffers (rotary frequencies) as they are in a loaded model."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = read_config(located)
    family_of(config.model_type)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{located.path}: the weights are quantised, which cannot be read block by block; use the plain weights"
        )
    attention = register() if device.type == "cpu" else "sdpa"  # as in `load_located`
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model.requires_grad_(False).eval()


def _is_absent(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _refuse_absent(module: nn.Module, _inputs: Any) -> None:
    if _is_absent(module):
        raise ModelError(
            f"{type(module).__name__} was to run and is not in memory: this base was loaded from a later block on, and reads states at the "
            "input of that block instead of tokens"
        )


def _path_in(root: Any, module: nn.Module) -> str:
    return next(name for name, found in bare(root).named_modules() if found is module)
