"""What a model knew before tuning and what tuning did to it; everything here works on stored probabilities, without a model.

In order of use: `questions` (what is asked, and checks), `demonstrations`, `freeform` (choices for free answers); before tuning `chance`,
`grouping`, `advice`; after it `measures`, `transitions`, `judgement`, `style`; for the intervention study `splits`, `items`, `intervention`.
"""

from __future__ import annotations

from tunescope.knowledge.advice import advise
from tunescope.knowledge.chance import ChanceRow, chance_table, probability_of_at_least
from tunescope.knowledge.demonstrations import check_demonstrations, check_fit, draw_demonstrations
from tunescope.knowledge.freeform import FreeForm, FreeFormChoices, to_choices
from tunescope.knowledge.grouping import EqualGroups, Grouping, equal_groups, group
from tunescope.knowledge.intervention import (
    Cell,
    GroupComparison,
    GroupDifference,
    PartialConsistency,
    compare_groups,
    partial_consistency,
)
from tunescope.knowledge.items import SHARES, TrainingItem, draw_general, intervention_sets, mix
from tunescope.knowledge.judgement import Judgement, judge
from tunescope.knowledge.measures import (
    choice_probabilities,
    consistencies,
    divergences,
    mean_kl,
    partial_spearman,
    rank_consistency,
)
from tunescope.knowledge.questions import (
    Probe,
    Question,
    accuracy,
    check_probes,
    check_questions,
    paired,
    probe,
)
from tunescope.knowledge.resampling import Estimate, paired_difference, wilson
from tunescope.knowledge.splits import Split, split_tests
from tunescope.knowledge.style import TokenShift, token_shift
from tunescope.knowledge.transitions import Transition, mcnemar, transitions

__all__ = [
    "SHARES",
    "Cell",
    "ChanceRow",
    "EqualGroups",
    "Estimate",
    "FreeForm",
    "FreeFormChoices",
    "GroupComparison",
    "GroupDifference",
    "Grouping",
    "Judgement",
    "PartialConsistency",
    "Probe",
    "Question",
    "Split",
    "TokenShift",
    "TrainingItem",
    "Transition",
    "accuracy",
    "advise",
    "chance_table",
    "check_demonstrations",
    "check_fit",
    "check_probes",
    "check_questions",
    "choice_probabilities",
    "compare_groups",
    "consistencies",
    "divergences",
    "draw_demonstrations",
    "draw_general",
    "equal_groups",
    "group",
    "intervention_sets",
    "judge",
    "mcnemar",
    "mean_kl",
    "mix",
    "paired",
    "paired_difference",
    "partial_consistency",
    "partial_spearman",
    "probability_of_at_least",
    "probe",
    "rank_consistency",
    "split_tests",
    "to_choices",
    "token_shift",
    "transitions",
    "wilson",
]
