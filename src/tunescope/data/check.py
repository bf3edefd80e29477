"""Checks over files that were read: labels, duplicates, leakage from training to test.

All are pure functions over `FileRead` that return findings; what should be left out is returned as sets of ids, never
left out silently.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunescope.data.example import Example
from tunescope.data.findings import FindingList, shown
from tunescope.data.near import NearIndex, near_across
from tunescope.data.read import FileRead
from tunescope.errors import did_you_mean
from tunescope.runs.records import Finding

IMBALANCE_RATIO = 10
MIN_SHARED_CHARACTERS = 30


@dataclass(frozen=True)
class LabelCheck:
    """Findings about labels, and how often each label is the (first) answer.

    Attributes:
        findings: codes ``label_unknown``, ``label_missing``, ``label_imbalance``, ``label_conflict`` and
            ``several_answers``.
        counts: label -> number of rows, in the order of the task's labels; empty without labels.
    """

    findings: tuple[Finding, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class DuplicateCheck:
    """Findings about repeated texts.

    Attributes:
        findings: codes ``duplicate_exact`` and ``duplicate_near``, or ``leakage``.
        drop: ids of the rows to leave out so that nothing repeats; the first of each kind stays.
    """

    findings: tuple[Finding, ...]
    drop: frozenset[str]


def normalise(text: str) -> str:
    r"""Returns the text as it is compared: NFKC, case folded, white space collapsed.

    Source: compatibility caseless matching, The Unicode Standard, section 3.13 (D146). Ours also collapses white space.

    Example:
        >>> normalise("  Ｐump\tLEAKS ")
        'pump leaks'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
    return " ".join(unicodedata.normalize("NFKC", folded.casefold()).split())


def check_labels(read: FileRead, labels: Sequence[str] | None, *, train: bool) -> LabelCheck:
    """Compares the answers with the task's labels, and equal prompts with each other.

    Args:
        read: the file.
        labels: the allowed answers; None for free text, then only equal prompts are compared.
        train: whether to look for labels without a training example and for imbalance.

    Example:
        >>> row = Example("1", "t", "", "The door is stuck.", ("Facility",), file="a.jsonl", line=1)
        >>> read = FileRead("a.jsonl", "t", "alpaca", (row,), (), "", 1)
        >>> [finding.message for finding in check_labels(read, ["it", "facility"], train=False).findings]
        ["label 'Facility' differs only in case or white space from 'facility'; write it so"]
    """
    found = FindingList(read.path, read.task)
    counts = dict.fromkeys(labels, 0) if labels is not None else {}
    if labels is not None:
        known = set(labels)
        folded = {normalise(label): label for label in labels}
        for example in read.examples:
            for target in example.targets:
                if target not in known:
                    found.add("label_unknown", "error", example.line, _unknown_label(target, labels, folded))
            if example.targets[0] in counts:
                counts[example.targets[0]] += 1
        if train:
            _label_balance(found, counts, len(read.examples))
    _conflicts(found, read.examples, labelled=labels is not None)
    return LabelCheck(found.findings(), counts)


def _unknown_label(target: str, labels: Sequence[str], folded: Mapping[str, str]) -> str:
    if (near := folded.get(normalise(target))) is not None:
        return f"label {shown(target)} differs only in case or white space from {shown(near)}; write it so"
    allowed = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    return f"label {shown(target)} is unknown{did_you_mean(target[:200], labels)}; allowed: {allowed}"


def _label_balance(found: FindingList, counts: Mapping[str, int], n: int) -> None:
    missing = [label for label, count in counts.items() if count == 0]
    for label in missing:
        found.add(
            "label_missing", "warning", None, f"label {shown(label)} has no training example; add some or drop it"
        )
    if n and not missing and max(counts.values()) > IMBALANCE_RATIO * min(counts.values()):
        most, least = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
        message = (
            f"{shown(most)} has {counts[most]} rows, {shown(least)} has {counts[least]}: "
            "accuracy will say little about the rare one; use macro_f1 or add rows"
        )
        found.add("label_imbalance", "info", None, message)


def _conflicts(found: FindingList, examples: Sequence[Example], *, labelled: bool) -> None:
    first: dict[tuple[object, str], Example] = {}
    for example in examples:
        other = first.setdefault((_context(example), normalise(_text(example))), example)
        if _answers(other) & _answers(example):
            continue
        if labelled:
            message = (
                f"same prompt as line {other.line}, but {shown(example.targets[0], 30)} here and "
                f"{shown(other.targets[0], 30)} there; one is wrong, or the prompt leaves something out"
            )
            found.add("label_conflict", "warning", example.line, message)
        else:
            message = f"same prompt as line {other.line} with another answer; in a test file put both in one list"
            found.add("several_answers", "info", example.line, message)


def check_duplicates(read: FileRead, *, near_threshold: float = 0.85) -> DuplicateCheck:
    """Finds rows of a file that repeat an earlier row: the same prompt, or nearly the same, with the same answer.

    A repeated prompt with another answer is a case for `check_labels`, and a nearly equal one with another answer is
    what a task is often about; neither is reported here.

    Args:
        read: the file.
        near_threshold: Jaccard similarity of character 5-grams of the normalised input (the instruction where there is
            no input) from which two rows are near duplicates; 1 turns the search off.

    Returns:
        Findings with both lines, and the ids of the later rows.

    Example:
        >>> rows = [Example(str(i), "t", "", text, ("x",), file="a.jsonl", line=i)
        ...         for i, text in enumerate(["The door is stuck.", "the  door is stuck."], 1)]
        >>> check_duplicates(FileRead("a.jsonl", "t", "alpaca", tuple(rows), (), "", 2)).drop
        frozenset({'2'})
    """
    found = FindingList(read.path, read.task)
    drop: set[str] = set()
    groups: dict[object, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in read.examples:
        same = groups[_context(example)][normalise(_text(example))]
        first = next((other for other in same if _answers(other) & _answers(example)), None)
        if first is not None:
            drop.add(example.id)
            found.add("duplicate_exact", "warning", example.line, f"repeats line {first.line}; remove one")
        else:
            same.append(example)
    for group in groups.values():
        for example, first, similarity in _near_repeats(group, near_threshold):
            drop.add(example.id)
            message = f"nearly repeats line {first.line} (similarity {similarity:.2f}); remove one"
            found.add("duplicate_near", "warning", example.line, message)
    return DuplicateCheck(found.findings(), frozenset(drop))


def check_leakage(train: FileRead, tests: Sequence[FileRead], *, near_threshold: float = 0.85) -> DuplicateCheck:
    """Finds training rows whose prompt stands, or nearly stands, in a test or out-of-domain file.

    The instruction may be worded differently there, as long as the shared input is long enough to be the same case.

    Args:
        train: the training file.
        tests: test and out-of-domain files.
        near_threshold: as in `check_duplicates`.

    Returns:
        Findings on the training file with the line in the test file, and the ids of the training rows to leave out.

    Example:
        >>> rows = [Example("1", "t", "", "The door is stuck.", ("x",), file=name, line=1) for name in ("a", "b")]
        >>> reads = [FileRead(row.file, "t", "alpaca", (row,), (), "", 1) for row in rows]
        >>> check_leakage(reads[0], reads[1:]).findings[0].message
        'the prompt stands in b:1; leave it out of training, or the test measures memory'
    """
    found = FindingList(train.path, train.task)
    held_out: dict[str, list[Example]] = defaultdict(list)
    for read in tests:
        for example in read.examples:
            held_out[normalise(_text(example))].append(example)
    rows: dict[str, list[Example]] = defaultdict(list)
    for example in train.examples:
        rows[normalise(_text(example))].append(example)
    drop: set[str] = set()
    equal = ((text, text, 1.0) for text in rows if text in held_out)
    for text, other_text, similarity in (*equal, *near_across(list(rows), list(held_out), near_threshold)):
        for example in rows[text]:
            match = next((o for o in held_out[other_text] if _same_case(example, o, text)), None)
            if match is None or example.id in drop:
                continue
            drop.add(example.id)
            how = "the prompt stands" if similarity == 1 else f"the prompt nearly stands (similarity {similarity:.2f})"
            message = f"{how} in {match.file}:{match.line}; leave it out of training, or the test measures memory"
            found.add("leakage", "warning", example.line, message)
    return DuplicateCheck(found.findings(), frozenset(drop))


def _text(example: Example) -> str:
    """What tells one case from another: the input, or the instruction where there is no input."""
    return example.input if example.input.strip() else example.instruction


def _context(example: Example) -> tuple[object, ...]:
    """What has to be equal before two texts are compared within a file."""
    instruction = normalise(example.instruction) if example.input.strip() else ""
    return (normalise(example.system or ""), example.history, instruction)


def _answers(example: Example) -> set[str]:
    return {normalise(target) for target in example.targets}


def _same_case(train: Example, test: Example, text: str) -> bool:
    """A short input (a name, a yes) under another instruction is another case."""
    return len(text) >= MIN_SHARED_CHARACTERS or _context(train) == _context(test)


def _near_repeats(group: Mapping[str, Sequence[Example]], threshold: float) -> Iterator[tuple[Example, Example, float]]:
    """Yields (row, earlier row, similarity) for every row near an earlier one with the same answer."""
    if threshold >= 1 or len(group) < 2:
        return
    texts = list(group)
    answers = {text: {answer for example in group[text] for answer in _answers(example)} for text in texts}
    index = NearIndex(texts, threshold)
    for number, text in enumerate(texts):

        def same_answer(other: int, own: set[str] = answers[text]) -> bool:
            return bool(own & answers[texts[other]])

        near = index.nearest(index.signatures[number], text, same_answer)
        if near is None:  # what repeats an earlier text is not indexed: a file of near copies stays fast
            index.insert(number)
            continue
        for example in group[text]:
            first = next((o for o in group[texts[near[0]]] if _answers(o) & _answers(example)), None)
            if first is not None:
                yield example, first, near[1]
