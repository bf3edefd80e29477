"""Models: load them, name their layers, score with them, generate with them."""

from tunescope.models.attention import save_memory
from tunescope.models.decode import Generated, common_prefix, continuation_logprobs, greedy, length_batches
from tunescope.models.family import (
    FAMILIES,
    PARTS,
    Family,
    bare,
    block_index,
    block_names,
    blocks,
    canonical_name,
    decoder,
    family_of,
    head_logits,
)
from tunescope.models.head import backward_from_head, head_chunks, target_losses
from tunescope.models.load import Loaded, Located, ModelInfo, load, load_located, load_tokenizer, locate
from tunescope.models.loss import IGNORED, mean_losses, pad_right, target_states, token_losses
from tunescope.models.package import (
    ALIASES,
    PackagedModel,
    cache_folder,
    cached_copy,
    find_alias,
    is_complete,
    pull,
    sha256_of,
)
from tunescope.models.packed import Group, Layout, Packed, Row, pack, passes, sharing
from tunescope.models.packed_attention import NAME as PACKED_ATTENTION
from tunescope.models.streamed import Sizes, StreamedBase, load_tail, lowest_block
from tunescope.models.tail import KeptStates, predicting_states, run_blocks

__all__ = [
    "ALIASES",
    "FAMILIES",
    "IGNORED",
    "PACKED_ATTENTION",
    "PARTS",
    "Family",
    "Generated",
    "Group",
    "KeptStates",
    "Layout",
    "Loaded",
    "Located",
    "ModelInfo",
    "PackagedModel",
    "Packed",
    "Row",
    "Sizes",
    "StreamedBase",
    "backward_from_head",
    "bare",
    "block_index",
    "block_names",
    "blocks",
    "cache_folder",
    "cached_copy",
    "canonical_name",
    "common_prefix",
    "continuation_logprobs",
    "decoder",
    "family_of",
    "find_alias",
    "greedy",
    "head_chunks",
    "head_logits",
    "is_complete",
    "length_batches",
    "load",
    "load_located",
    "load_tail",
    "load_tokenizer",
    "locate",
    "lowest_block",
    "mean_losses",
    "pack",
    "pad_right",
    "passes",
    "predicting_states",
    "pull",
    "run_blocks",
    "save_memory",
    "sha256_of",
    "sharing",
    "target_losses",
    "target_states",
    "token_losses",
]
