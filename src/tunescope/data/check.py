"""Checks over files that were read: labels, duplicates, leakage from training to test, lengths.

All are pure functions over `FileRead` (or plain numbers) that return findings; what should be left out is returned as
sets of ids, never left out silently.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tunescope.data.example import Example
from tunescope.data.formats import FindingList, shown
from tunescope.data.read import FileRead
from tunescope.errors import did_you_mean
from tunescope.runs.records import Finding

GRAM = 5
IMBALANCE_RATIO = 10
MIN_SHARED_CHARACTERS = 30
PROMPT_SHARE = 0.75
_PERMUTATIONS = 128
_CANDIDATES = 20
# Four standard errors of a similarity estimated from 128 permutations near 0.85.
_MARGIN = 0.12
_COMPARED_CHARACTERS = 10_000


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


@dataclass(frozen=True)
class LengthTable:
    """Lengths in tokens: median, 95th percentile, longest."""

    p50: int
    p95: int
    max: int

    def to_dict(self) -> dict[str, int]:
        """Returns the three numbers by name."""
        return {"p50": self.p50, "p95": self.p95, "max": self.max}


class LengthRow(NamedTuple):
    """Lengths of one encoded example, in tokens."""

    file: str
    line: int | None
    n_prompt_tokens: int
    n_target_tokens: int


@dataclass(frozen=True)
class LengthCheck:
    """Findings about lengths, and the length tables by file.

    Attributes:
        findings: codes ``target_truncated``, ``target_no_tokens``, ``prompt_long``.
        prompt_tokens: file -> table.
        target_tokens: file -> table.
    """

    findings: tuple[Finding, ...]
    prompt_tokens: Mapping[str, LengthTable] = field(default_factory=dict)
    target_tokens: Mapping[str, LengthTable] = field(default_factory=dict)


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
    for text, other_text, similarity in (*equal, *_near_across(list(rows), list(held_out), near_threshold)):
        for example in rows[text]:
            match = next((o for o in held_out[other_text] if _same_case(example, o, text)), None)
            if match is None or example.id in drop:
                continue
            drop.add(example.id)
            how = "the prompt stands" if similarity == 1 else f"the prompt nearly stands (similarity {similarity:.2f})"
            message = f"{how} in {match.file}:{match.line}; leave it out of training, or the test measures memory"
            found.add("leakage", "warning", example.line, message)
    return DuplicateCheck(found.findings(), frozenset(drop))


def length_findings(rows: Iterable[LengthRow], *, max_length: int, task: str | None = None) -> LengthCheck:
    """Checks the lengths of encoded examples.

    Args:
        rows: (file, line, prompt tokens, target tokens) before anything is cut.
        max_length: longest prompt plus target, in tokens.
        task: name of the task.

    Returns:
        Findings, and per file a table of prompt and of target lengths.

    Example:
        >>> check = length_findings([LengthRow("a.jsonl", 1, 20, 4)], max_length=22)
        >>> check.findings[0].code, check.prompt_tokens["a.jsonl"].to_dict()
        ('target_truncated', {'p50': 20, 'p95': 20, 'max': 20})
    """
    by_file: dict[str, list[LengthRow]] = defaultdict(list)
    for row in rows:
        by_file[row[0]].append(LengthRow(*row))
    findings: list[Finding] = []
    for file, group in by_file.items():
        found = FindingList(file, task)
        needed = max(row.n_prompt_tokens + row.n_target_tokens for row in group)
        for row in group:
            _check_length(found, row, max_length, needed)
        findings += found.findings()
    prompts = {file: _length_table([row.n_prompt_tokens for row in group]) for file, group in by_file.items()}
    targets = {file: _length_table([row.n_target_tokens for row in group]) for file, group in by_file.items()}
    return LengthCheck(tuple(findings), prompts, targets)


def _check_length(found: FindingList, row: LengthRow, max_length: int, needed: int) -> None:
    prompt, target = row.n_prompt_tokens, row.n_target_tokens
    if target < 1:
        found.add("target_no_tokens", "error", row.line, "the answer has no tokens: nothing to learn; write the answer")
    elif prompt + target > max_length:
        cut = "entirely" if prompt >= max_length else f"by {prompt + target - max_length} of {target} tokens"
        message = (
            f"prompt {prompt} + answer {target} tokens; allowed: {max_length} (data.max_length), so the answer would "
            f"be cut {cut}; shorten the row, or set data.max_length to {needed} (the longest row of this file)"
        )
        found.add("target_truncated", "error", row.line, message)
    elif prompt > PROMPT_SHARE * max_length:
        message = f"the prompt has {prompt} of {max_length} tokens (data.max_length): little room is left for an answer"
        found.add("prompt_long", "warning", row.line, message)


def _length_table(lengths: Sequence[int]) -> LengthTable:
    # 'higher' keeps the numbers lengths that occur, and p95 <= max whatever the number of rows.
    p50, p95 = np.percentile(np.asarray(lengths), [50, 95], method="higher")
    return LengthTable(int(p50), int(p95), max(lengths))


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
    index = _NearIndex(texts, threshold)
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


def _near_across(texts: Sequence[str], others: Sequence[str], threshold: float) -> Iterator[tuple[str, str, float]]:
    """Yields (text, other, similarity) for every text that is near, but not equal to, one of the others."""
    if threshold >= 1 or not texts or not others:
        return
    index = _NearIndex(others, threshold)
    for number in range(len(others)):
        index.insert(number)
    for text, signature in zip(texts, _signatures(texts), strict=True):

        def differs(other: int, own: str = text) -> bool:
            return others[other] != own

        near = index.nearest(signature, text, differs)
        if near is not None:
            yield text, others[near[0]], near[1]


class _NearIndex:
    """Finds the nearest of the inserted texts by MinHash, and verifies it by the true similarity.

    Source: datasketch's `MinHashLSH`; ours verifies the 20 likeliest candidates and looks only at the first 10,000
    characters of a text.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        from datasketch import MinHashLSH

        self._texts = texts
        self._threshold = threshold
        self.signatures = _signatures(texts)
        self._values = np.array([signature.hashvalues for signature in self.signatures])
        # A missed pair is lost, a false candidate costs only time: hence the weights.
        self._lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))

    def insert(self, number: int) -> None:
        """Makes a text findable."""
        self._lsh.insert(number, self.signatures[number], check_duplication=False)

    def nearest(self, signature: Any, text: str, accept: Callable[[int], bool]) -> tuple[int, float] | None:
        """Returns (number, similarity) of the likeliest accepted text that reaches the threshold, or None."""
        numbers = np.array(sorted(self._lsh.query(signature)), dtype=np.intp)
        if not len(numbers):
            return None
        likeness = (self._values[numbers] == signature.hashvalues).mean(axis=1)
        order = np.argsort(-likeness, kind="stable")
        likely = numbers[order[likeness[order] >= self._threshold - _MARGIN]]
        accepted = (number for number in likely.tolist() if accept(number))
        for number in itertools.islice(accepted, _CANDIDATES):
            similarity = _jaccard(text, self._texts[number])
            if similarity >= self._threshold:
                return number, similarity
        return None


def _signatures(texts: Sequence[str]) -> list[Any]:
    """Returns a MinHash per text; equal texts have equal ones in every process."""
    from datasketch import MinHash

    empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
    signatures = []
    for text in texts:
        signature = empty.copy()
        hashes = _gram_hashes(text[:_COMPARED_CHARACTERS])
        signature.update_batch(hashes.tolist())
        signatures.append(signature)
    return signatures


def _gram_hashes(text: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Returns a 32-bit hash per distinct gram."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    n = max(1, len(codes) - GRAM + 1)
    hashes = np.zeros(n, dtype=np.uint64)
    for offset in range(min(GRAM, len(codes))):
        hashes = (hashes ^ codes[offset : offset + n]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes >> np.uint64(32))


@lru_cache(maxsize=256)
def _grams(text: str) -> frozenset[str]:
    text = text[:_COMPARED_CHARACTERS]
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def _jaccard(x: str, y: str) -> float:
    a, b = _grams(x), _grams(y)
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
