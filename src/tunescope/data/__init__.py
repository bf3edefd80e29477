"""Data: reading files of any format, checking them, and what is wrong with them, by file and line."""

from tunescope.data.augment import Augmentation, Varied, check_templates, noisy, vary
from tunescope.data.batch import epoch_batches
from tunescope.data.check import (
    DuplicateCheck,
    LabelCheck,
    check_duplicates,
    check_labels,
    check_leakage,
    normalise,
)
from tunescope.data.demonstrate import Demonstrations, prompt_key
from tunescope.data.encode import ChatFormat, Encoded, token_pieces
from tunescope.data.example import Example, Message, Task
from tunescope.data.formats import Format, RowProblem, RowRead, detect_format, example_from_row
from tunescope.data.lengths import LengthCheck, LengthRow, LengthTable, length_findings
from tunescope.data.personal import PersonalMatch, check_personal, find_personal
from tunescope.data.questions import QuestionRow, QuestionsRead, gold_index, read_questions
from tunescope.data.read import FileRead, read_file
from tunescope.data.report import DataReport, FileRole, FileSummary, TaskFile, build_report, finding_line

__all__ = [
    "Augmentation",
    "ChatFormat",
    "DataReport",
    "Demonstrations",
    "DuplicateCheck",
    "Encoded",
    "Example",
    "FileRead",
    "FileRole",
    "FileSummary",
    "Format",
    "LabelCheck",
    "LengthCheck",
    "LengthRow",
    "LengthTable",
    "Message",
    "PersonalMatch",
    "QuestionRow",
    "QuestionsRead",
    "RowProblem",
    "RowRead",
    "Task",
    "TaskFile",
    "Varied",
    "build_report",
    "check_duplicates",
    "check_labels",
    "check_leakage",
    "check_personal",
    "check_templates",
    "detect_format",
    "epoch_batches",
    "example_from_row",
    "find_personal",
    "finding_line",
    "gold_index",
    "length_findings",
    "noisy",
    "normalise",
    "prompt_key",
    "read_file",
    "read_questions",
    "token_pieces",
    "vary",
]
