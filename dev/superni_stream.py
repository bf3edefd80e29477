"""Turn a folder of Super-NaturalInstructions task files into a stream of 16 categories, for `tunescope learn` and dev/stream.py.

python dev/superni_stream.py FOLDER OUT [--train 80] [--test 20] [--seed 0] [--longest 2400] [--model NAME]

Writes OUT/data/<category>.train.jsonl and .test.jsonl and OUT/stream.yaml. The categories, and the curriculum order from easy to hard, are those of
Wang et al. 2024, InsCL (arXiv 2403.11435), section 4.1. Which task belongs to which category the paper only gives as a result, so the
table below is ours: by the category that a task file names, and before that by its name where that says more.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

CURRICULUM = (
    "classification",
    "text_quality_evaluation",
    "code",
    "detection",
    "sentiment_analysis",
    "comprehension",
    "closed_qa",
    "extraction",
    "dialogue",
    "program_execution",
    "rewriting",
    "open_qa",
    "misc",
    "generation",
    "summarization",
    "mathematics",
)
BY_NAME = (
    (r"math|calculat|arithm|numeric|svamp|gsm8k", "mathematics"),
    (r"_mc_|multiple_choice|choice_answer|qasc_answer|openbook|_race_|cosmos|_copa_", "closed_qa"),
)
BY_CATEGORY = {
    "Text Categorization": "classification",
    "Textual Entailment": "classification",
    "Commonsense Classification": "classification",
    "Question Understanding": "classification",
    "Word Relation Classification": "classification",
    "Language Identification": "classification",
    "Discourse Relation Classification": "classification",
    "Text Matching": "text_quality_evaluation",
    "Text Quality Evaluation": "text_quality_evaluation",
    "Answer Verification": "text_quality_evaluation",
    "Grammar Error Detection": "text_quality_evaluation",
    "Text to Code": "code",
    "Code to Text": "code",
    "Linguistic Probing": "detection",
    "Toxic Language Detection": "detection",
    "Irony Detection": "detection",
    "Stereotype Detection": "detection",
    "Answerability Classification": "detection",
    "Negotiation Strategy Detection": "detection",
    "Fact Verification": "detection",
    "Sentiment Analysis": "sentiment_analysis",
    "Coreference Resolution": "comprehension",
    "Cause Effect Classification": "comprehension",
    "Story Composition": "comprehension",
    "Coherence Classification": "comprehension",
    "Explanation": "comprehension",
    "Information Extraction": "extraction",
    "Named Entity Recognition": "extraction",
    "Keyword Tagging": "extraction",
    "Pos Tagging": "extraction",
    "Dialogue Generation": "dialogue",
    "Dialogue Act Recognition": "dialogue",
    "Dialogue State Tracking": "dialogue",
    "Intent Identification": "dialogue",
    "Program Execution": "program_execution",
    "Text Simplification": "rewriting",
    "Question Rewriting": "rewriting",
    "Style Transfer": "rewriting",
    "Paraphrasing": "rewriting",
    "Grammar Error Correction": "rewriting",
    "Sentence Perturbation": "rewriting",
    "Question Answering": "open_qa",
    "Word Analogy": "misc",
    "Entity Generation": "misc",
    "Misc.": "misc",
    "Data to Text": "generation",
    "Text Completion": "generation",
    "Sentence Composition": "generation",
    "Question Generation": "generation",
    "Wrong Candidate Generation": "generation",
    "Fill in The Blank": "generation",
    "Poem Generation": "generation",
    "Summarization": "summarization",
    "Title Generation": "summarization",
    "Mathematics": "mathematics",
}


def category_of(name: str, categories: Sequence[str]) -> str:
    """Returns the category of a task file; what no rule knows is misc."""
    for pattern, category in BY_NAME:
        if re.search(pattern, name):
            return category
    return next((BY_CATEGORY[found] for found in categories if found in BY_CATEGORY), "misc")


def rows_of(path: Path, document: dict[str, Any], longest: int) -> Iterator[dict[str, Any]]:
    """Yields rows that are short enough, each input once."""
    definition = document["Definition"]
    instruction = "\n".join(definition) if isinstance(definition, list) else definition
    seen = set()
    for number, instance in enumerate(document["Instances"]):
        outputs = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
        size = len(instruction) + len(instance["input"]) + max(map(len, outputs), default=0)
        if instance["input"] in seen or size > longest or not outputs or not outputs[0].strip():
            continue
        seen.add(instance["input"])
        yield {
            "id": f"{path.stem}-{number}",
            "instruction": instruction,
            "input": instance["input"],
            "output": outputs,
            "source": path.stem,
        }


def drawn(tasks: list[list[dict[str, Any]]], count: int, dice: random.Random) -> list[dict[str, Any]]:
    """Takes rows out of the tasks in turn, so that a category is not one large task."""
    for rows in tasks:
        dice.shuffle(rows)
    taken: list[dict[str, Any]] = []
    while len(taken) < count and any(tasks):
        for rows in tasks:
            if rows and len(taken) < count:
                taken.append(rows.pop())
    return taken


def main() -> None:
    """Writes data and settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with task JSON files")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=80, help="training examples per category")
    parser.add_argument("--test", type=int, default=20, help="test examples per category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--longest", type=int, default=2400, help="leave out rows with more characters, answer included"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    given = parser.parse_args()
    files = sorted(given.folder.glob("*.json"))
    pools: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in CURRICULUM}
    for path in files:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "Instances" in document:
            rows = list(rows_of(path, document, given.longest))
            pools[category_of(path.stem, document.get("Categories", []))].append(rows)
    if not any(pools.values()):
        parser.error(
            f"{given.folder}: no task file of Super-NaturalInstructions (*.json with Instances) in this folder"
        )
    tasks = []
    for name in CURRICULUM:
        dice = random.Random(f"{given.seed} {name}")
        rows = drawn(pools[name], given.train + given.test, dice)
        dice.shuffle(rows)
        if len(rows) < given.train + given.test:
            print(f"{name}: left out, {len(rows)} rows of {len(pools[name])} task files are too few", file=sys.stderr)
            continue
        for role, part in (("train", rows[given.test :]), ("test", rows[: given.test])):
            path = given.out / "data" / f"{name}.{role}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
        sources = sorted({row["source"] for row in rows})
        print(f"{name}: {given.train} + {given.test} of {len(sources)} task files ({', '.join(sources)})")
        files_of = {role: f"data/{name}.{role}.jsonl" for role in ("train", "test")}
        tasks.append({"name": name, "family": name, **files_of, "metric": "rouge_l", "attributes": ["source"]})
    settings = {
        "model": given.model,
        "output_dir": "runs",
        "seed": 1,
        "tasks": tasks,
        "arms": ["nothing"],
        "data": {"validation_fraction": 0, "near_duplicate_threshold": 1},
        "tuning": {
            "learning_rate": 5e-4,
            "num_epochs": 2,
            "batch_size": 8,
            "lora_rank": 8,
            "patience": 0,
            "checks_per_epoch": 1,
        },
        "evaluation": {"max_new_tokens": 48, "latency_requests": 0, "n_bootstrap": 1000},
        "replay": {"budget_per_task": max(1, given.train // 5), "evaluate": "seen", "experts": True},
    }
    (given.out / "stream.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    print(f"{given.out / 'stream.yaml'}: {len(tasks)} tasks")


if __name__ == "__main__":
    main()
