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

__all__ = [
    "ALIASES",
    "FAMILIES",
    "IGNORED",
    "PARTS",
    "Family",
    "Generated",
    "Loaded",
    "Located",
    "ModelInfo",
    "PackagedModel",
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
    "head_logits",
    "is_complete",
    "length_batches",
    "load",
    "load_located",
    "load_tokenizer",
    "locate",
    "mean_losses",
    "pad_right",
    "pull",
    "save_memory",
    "sha256_of",
    "target_states",
    "token_losses",
]
