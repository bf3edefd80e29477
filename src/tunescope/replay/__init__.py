"""Which examples of earlier tasks come back when the next task is tuned, and what the choice rests on."""

from tunescope.replay.allocation import ALLOCATIONS, Allocation, allocate
from tunescope.replay.bias import BiasRow, bias_table
from tunescope.replay.embeddings import EmbeddingStore
from tunescope.replay.information import instruction_information
from tunescope.replay.language import language, length_bin
from tunescope.replay.phrases import key_phrases
from tunescope.replay.planning import InstructionSet, TaskDistance, task_distances
from tunescope.replay.policies import POLICIES
from tunescope.replay.pool import Chosen, Grouped, Policy, PoolTask, ReplayPool, group_instructions
from tunescope.replay.sampling import sample_examples, sample_with_steps
from tunescope.replay.tag_file import FileTagger
from tunescope.replay.taggers import EndpointTagger, LocalTagger, Tagger
from tunescope.replay.tags import merge_tags, normalise_tag, tag_names
from tunescope.replay.transport import Distance, sampled_wasserstein, wasserstein

__all__ = [
    "ALLOCATIONS",
    "POLICIES",
    "Allocation",
    "BiasRow",
    "Chosen",
    "Distance",
    "EmbeddingStore",
    "EndpointTagger",
    "FileTagger",
    "Grouped",
    "InstructionSet",
    "LocalTagger",
    "Policy",
    "PoolTask",
    "ReplayPool",
    "Tagger",
    "TaskDistance",
    "allocate",
    "bias_table",
    "group_instructions",
    "instruction_information",
    "key_phrases",
    "language",
    "length_bin",
    "merge_tags",
    "normalise_tag",
    "sample_examples",
    "sample_with_steps",
    "sampled_wasserstein",
    "tag_names",
    "task_distances",
    "wasserstein",
]
