"""The sections of a report, one module each, all with the same outline.

Every module offers ``section(run, words) -> Section``: it takes a run as it was read and the words of a language, and
gives back what its template shows. A part that the run does not hold becomes a sentence that says so.
"""

from tunescope.report.sections import (
    arms,
    curves,
    data,
    data_amount,
    forecast,
    gaps,
    generalisation,
    knowledge,
    knowledge_advice,
    knowledge_change,
    knowledge_limits,
    knowledge_overview,
    knowledge_probe,
    knowledge_sets,
    knowledge_style,
    layers,
    map_bands,
    map_causal,
    map_limits,
    map_method,
    map_overview,
    map_proposals,
    map_tasks,
    money,
    overview,
    reproduce,
    risk,
    samples,
    stream_allocation,
    stream_bias,
    stream_curves,
    stream_matrix,
    stream_overview,
    tasks,
)

IN_ORDER = (
    overview,
    arms,
    tasks,
    generalisation,
    money,
    forecast,
    risk,
    layers,
    knowledge,
    curves,
    data_amount,
    data,
    samples,
    gaps,
    reproduce,
)
MAP_IN_ORDER = (map_overview, map_tasks, map_bands, map_causal, map_proposals, map_limits, map_method, data, reproduce)
KNOWLEDGE_IN_ORDER = (
    knowledge_overview,
    knowledge_probe,
    knowledge_advice,
    knowledge_change,
    knowledge_style,
    knowledge_sets,
    knowledge_limits,
    data,
    reproduce,
)

STREAM_IN_ORDER = (
    stream_overview,
    stream_matrix,
    stream_curves,
    stream_allocation,
    stream_bias,
    curves,
    data,
    reproduce,
)

__all__ = ["IN_ORDER", "KNOWLEDGE_IN_ORDER", "MAP_IN_ORDER", "STREAM_IN_ORDER"]
