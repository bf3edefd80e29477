"""Questions with a free answer turned into choices, with answers to other questions of the same domain as distractors.

A distractor is like the answer, so that the form gives nothing away:

1. same type: ``yes_no``, ``number`` (at least half of its letters and digits are digits), or text by its script, by whether it begins with a
   capital (a name among common nouns would stand out) and by whether it ends like a sentence;
2. similar length in characters (which works without spaces between words), drawn from the nearest ones;
3. never the same after normalisation (case, width, white space, outer punctuation) as a right answer, an answer given elsewhere to the same
   question, or another choice; and no text that contains a right answer or stands in it.

A yes-or-no answer has its opposite as the only distractor. Nothing depends on the order of the questions.
"""

from __future__ import annotations

import bisect
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunescope.data.check import normalise
from tunescope.errors import DataError, UserError
from tunescope.knowledge.questions import Question, by_key, draw_key
from tunescope.runs.records import Record

_OPPOSITES = (
    ("yes", "no"),
    ("true", "false"),
    ("correct", "incorrect"),
    ("ja", "nein"),
    ("oui", "non"),
    ("sí", "no"),
    ("はい", "いいえ"),
    ("正しい", "誤り"),
    ("是", "否"),
)
_QUOTES = "\"'`“”‘’«»„「」『』"
_SENTENCE_ENDS = (".", "。", "!", "！", "?", "？", "।", "။")
_OUTER = _QUOTES + ".。!?！？,，、;:：· "
_UNSPACED = "EAST ASIAN"
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA")
_NEAREST_PER_CHOICE = 4
"""Distractors are drawn from this many times as many candidates as are needed, the nearest in length."""


@dataclass(frozen=True)
class FreeForm(Record):
    """A question with a free answer.

    Attributes:
        id: unique in the study.
        domain: field of knowledge.
        text: the question.
        answers: right answers; the first is shown as the gold choice, the others are never distractors.
        context: background text, or empty.
        source: name of the data set.
        distractors: wrong answers that came with the question; used before sampled ones.
    """

    id: str
    domain: str
    text: str
    answers: tuple[str, ...]
    context: str = ""
    source: str = ""
    distractors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("answers", "distractors"):
            texts = getattr(self, name)
            object.__setattr__(self, name, texts if isinstance(texts, str) else tuple(texts))


@dataclass(frozen=True)
class FreeFormChoices:
    """Questions made from free answers.

    Attributes:
        questions: in the order given.
        other_type: ids of questions with a sampled distractor of another type than the answer, for lack of enough of the same; texts of
            the same script are taken first.
    """

    questions: tuple[Question, ...]
    other_type: tuple[str, ...]


def to_choices(questions: Sequence[FreeForm], *, n_choices: int, seed: int) -> FreeFormChoices:
    """Gives each question its right answer and distractors as choices, by the rules at the top of this module.

    Args:
        questions: of all domains; distractors come from the same domain.
        n_choices: choices of each question, the right one included, at least 2; yes-or-no questions have 2.
        seed: of the draw and of the order of the choices.

    Returns:
        The questions as multiple choice.

    Raises:
        DataError: if an id repeats, a question lacks a domain, text or answer, a distractor that came with it is a right answer or repeats,
            or its domain does not hold enough different answers.
        UserError: if `n_choices` is below 2.

    Example:
        >>> facts = [("1", "capital of France", "Paris"), ("2", "capital of Peru", "Lima"), ("3", "capital of Chad", "N'Djamena")]
        >>> made = to_choices([FreeForm(i, "geo", text, (answer,)) for i, text, answer in facts], n_choices=3, seed=0)
        >>> sorted(made.questions[0].choices), made.questions[0].choices[made.questions[0].gold]
        (['Lima', "N'Djamena", 'Paris'], 'Paris')
    """
    if n_choices < 2:
        raise UserError(f"n_choices is {n_choices}: a question needs at least 2 choices")
    problems = _problems(questions)
    if problems:
        raise DataError(problems)
    domains = {
        domain: _Domain(group, seed) for domain, group in by_key(questions, lambda question: question.domain).items()
    }
    made, other_type = [], []
    for question in questions:
        wrong, strange = domains[question.domain].distractors(question, n_choices - 1)
        if not wrong or (len(wrong) < n_choices - 1 and answer_type(question.answers[0]) != "yes_no"):
            problems.append(
                f"question {question.id!r} needs {n_choices - 1} wrong answers and domain {question.domain!r} has {len(wrong)} that can be "
                "told from its right one: add questions to the domain, give distractors, or ask for fewer choices"
            )
            continue
        made.append(_question(question, wrong, seed))
        if strange:
            other_type.append(question.id)
    if problems:
        raise DataError(problems)
    return FreeFormChoices(tuple(made), tuple(other_type))


def answer_type(text: str) -> str:
    """Says what kind of answer a text is: ``yes_no``, ``number``, or text with its script and form.

    Example:
        >>> [answer_type(text) for text in ("No.", "1,250 €", "3 pumps and a valve", "Lima", "It leaks.", "給水ポンプ")]
        ['yes_no', 'number', 'text LATIN', 'text LATIN capital', 'text LATIN capital sentence', 'text EAST ASIAN']
    """
    plain = _plain(text)
    if any(plain in pair for pair in _OPPOSITES):
        return "yes_no"
    counted = [character for character in plain if character.isalnum()]
    if sum(character.isdigit() for character in counted) * 2 >= max(1, len(counted)):
        return "number"
    scripts = Counter(_script(character) for character in counted if character.isalpha())
    script = f" {min(scripts, key=lambda name: (-scripts[name], name))}" if scripts else ""
    bare = text.strip().strip(_QUOTES)
    capital = " capital" if bare[:1].isupper() else ""
    return f"text{script}{capital}{' sentence' if bare[-1:] in _SENTENCE_ENDS else ''}"


def _script(character: str) -> str:
    name = unicodedata.name(character, "OTHER").split()[0]
    return _UNSPACED if name in _EAST_ASIAN else name


def _without_form(kind: str) -> str:
    return kind.removesuffix(" sentence").removesuffix(" capital")


def _plain(text: str) -> str:
    """Returns the text as answers are compared."""
    folded = normalise(text)
    return folded.strip(_OUTER) or folded


def _problems(questions: Sequence[FreeForm]) -> list[str]:
    if not questions:
        return ["got no questions: give at least one"]
    counts: Mapping[str, int] = Counter(question.id for question in questions)
    problems = [f"id {name!r} occurs {count} times: ids must differ" for name, count in counts.items() if count > 1]
    for question in questions:
        name = f"question {question.id!r}"
        if isinstance(question.answers, str) or isinstance(question.distractors, str):
            problems.append(f"{name} has a text where a list of texts belongs: put answers and distractors into lists")
            continue
        if not question.domain.strip() or not question.text.strip():
            problems.append(f"{name} lacks a domain or its text: give both")
        if not question.answers or any(not answer.strip() for answer in question.answers):
            problems.append(f"{name} has the answers {list(question.answers)}: give at least one, none empty")
        right, wrong = {_plain(answer) for answer in question.answers}, [_plain(text) for text in question.distractors]
        if "" in wrong or len(set(wrong)) < len(wrong) or right & set(wrong):
            problems.append(
                f"{name} has the distractors {list(question.distractors)}: each must be there once, and be no right answer"
            )
    return problems


class _Domain:
    """The answers of one domain, ready to be drawn from: type -> length -> (draw key, answer), keys ascending."""

    def __init__(self, group: Sequence[FreeForm], seed: int) -> None:
        spellings: dict[str, Counter[str]] = {}
        self.asked: dict[str, set[str]] = {}  # answer as compared -> texts of the questions it answers
        for question in group:
            for place, answer in enumerate(question.answers):
                plain = _plain(answer)
                self.asked.setdefault(plain, set()).add(normalise(question.text))
                if place == 0:
                    spellings.setdefault(plain, Counter())[answer.strip()] += 1
        self.seed = seed
        self.drawers: dict[str, dict[int, list[tuple[str, str, str]]]] = {}
        for plain, found in spellings.items():
            answer = min((-count, len(spelling), spelling) for spelling, count in found.items())[2]  # the most frequent
            drawer = self.drawers.setdefault(answer_type(answer), {}).setdefault(len(plain), [])
            drawer.append((draw_key(seed, "answer", plain), plain, answer))
        for drawer in (drawer for lengths in self.drawers.values() for drawer in lengths.values()):
            drawer.sort()

    def distractors(self, question: FreeForm, wanted: int) -> tuple[list[str], bool]:
        """Returns the wrong answers, and whether one of them is of another type than the right one."""
        own = sorted(
            question.distractors, key=lambda text: draw_key(self.seed, "own", f"{question.id}\0{_plain(text)}")
        )
        own = [text.strip() for text in own[:wanted]]
        opposite = self._opposite(question.answers[0])
        if len(own) == wanted or (opposite is not None and own):
            return own, False
        if opposite is not None:
            return [opposite.capitalize() if question.answers[0].strip()[0].isupper() else opposite], False
        kind = answer_type(question.answers[0])
        found = own + self._draw(question, own, [kind], wanted - len(own))
        n_same = len(found)
        others = sorted(self.drawers.keys() - {kind})
        alike = [other for other in others if _without_form(other) == _without_form(kind)]
        for kinds in (alike, [other for other in others if other not in alike]):
            found += self._draw(question, found, kinds, wanted - len(found))
        return found, len(found) > n_same

    def _opposite(self, answer: str) -> str | None:
        """Returns the opposite of a yes-or-no answer, the one used here where there are several; None for others."""
        plain = _plain(answer)
        found = [pair[1 - pair.index(plain)] for pair in _OPPOSITES if plain in pair]
        return next((word for word in found if word in self.asked), found[0] if found else None)

    def _draw(self, question: FreeForm, taken: Sequence[str], kinds: Sequence[str], wanted: int) -> list[str]:
        """Draws among the usable answers of these types that are nearest to the right one in length."""
        right, used = [_plain(answer) for answer in question.answers], {_plain(text) for text in taken}
        asked, length, here = normalise(question.text), len(right[0]), draw_key(self.seed, "question", question.id)
        by_length: dict[int, list[str]] = {}
        for kind in kinds:
            for size in self.drawers.get(kind, {}):
                by_length.setdefault(size, []).append(kind)
        pool: list[str] = []
        for size in sorted(by_length, key=lambda size: (abs(math.log(max(1, size) / max(1, length))), size)):
            for kind in by_length[size]:
                drawer = self.drawers[kind][size]
                start = bisect.bisect(drawer, (here,))  # another place for every question
                for _, plain, answer in (*drawer[start:], *drawer[:start]):
                    if len(pool) == wanted * _NEAREST_PER_CHOICE:
                        break
                    if asked not in self.asked[plain] and plain not in used and not _contained(plain, right, kind):
                        pool.append(answer)
        return sorted(pool, key=lambda answer: draw_key(self.seed, "distractor", f"{question.id}\0{answer}"))[:wanted]


def _contained(plain: str, right: Sequence[str], kind: str) -> bool:
    """Says whether an answer is a right one, holds one or stands in one; as whole words where words have spaces between them."""
    if _without_form(kind) == f"text {_UNSPACED}":
        return any(plain in each or each in plain for each in right)
    return any(f" {plain} " in f" {each} " or f" {each} " in f" {plain} " for each in right)


def _question(question: FreeForm, wrong: Sequence[str], seed: int) -> Question:
    right = question.answers[0].strip()
    choices = sorted([right, *wrong], key=lambda text: draw_key(seed, "place", f"{question.id}\0{text}"))
    return Question(
        question.id,
        question.domain,
        question.text,
        tuple(choices),
        choices.index(right),
        question.context,
        question.source,
    )
