"""Tags from a server: a failure half-way costs nothing that was answered, in this run and in the next."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
from tiny_stream import TASKS, stream

from chat_server import ChatServer, Reply, answer
from tunescope.errors import DataError, ModelError
from tunescope.studies import learn

pytestmark = pytest.mark.usefixtures("loopback")


def asked(server: ChatServer) -> list[str]:
    """The instructions it was asked about."""
    return [prompt.rpartition("Instruction:\n")[2].strip() for prompt in server.prompts()]


def test_after_a_failure_half_way_only_the_rest_is_asked(model: Path, tmp_path: Path) -> None:
    healthy = threading.Event()

    def reply(number: int, prompt: str) -> Reply:
        if "Desk?" in prompt or healthy.is_set():
            return answer('["desk", "routing"]')
        return Reply(b"no", status=403)

    with ChatServer(reply) as server:
        tags = {"tagger": "endpoint", "url": server.url, "model": "m"}
        config = stream(tmp_path, model, "run", TASKS[:2], tags=tags)
        with pytest.raises(ModelError, match="403"):
            learn.run(config, plan_only=True)
        assert asked(server).count("Mood?") == 1
        healthy.set()
        learn.run(config, plan_only=True, resume=True)
        # What was answered before is not asked again, whichever of the two came first.
        assert asked(server).count("Desk?") == 1 and asked(server).count("Mood?") == 2


def test_tags_are_noted_in_the_run_and_used_for_information(model: Path, tmp_path: Path) -> None:
    with ChatServer(
        lambda number, prompt: answer('["common", "rare"]' if "Desk?" in prompt else '["common"]')
    ) as server:
        tags = {"tagger": "endpoint", "url": server.url, "model": "m"}
        run = learn.run(stream(tmp_path, model, "run", TASKS[:2], tags=tags))
        assert sorted(asked(server)) == ["Desk?", "Mood?"]
        rows = run.read_jsonl("replay_plan.jsonl")
        assert {row["reason"]["information"] for row in rows} == {math.log(2)}
        noted = next(
            r["details"]
            for r in run.read_jsonl("ledger.jsonl")
            if r["event"] == "replay chosen" and r["details"]["examples"]
        )
        assert noted["tagger"] == "endpoint m"
        assert "Desk?" not in (run.path / "tags.jsonl").read_text(encoding="utf-8")
        more = learn.run(stream(tmp_path, model, "more", TASKS[2:], tags=tags, onto=str(run.path)), plan_only=True)
        assert sorted(asked(server)) == ["Desk?", "Mood?", "Sum up."]
        assert len(more.read_jsonl("tags.jsonl")) == 3


def test_an_answer_that_is_no_list_of_tags_is_one_line(model: Path, tmp_path: Path) -> None:
    with ChatServer(lambda number, prompt: answer("I would say: desk work")) as server:
        tags = {"tagger": "endpoint", "url": server.url, "model": "m"}
        with pytest.raises(DataError, match="no JSON list of tags"):
            learn.run(stream(tmp_path, model, "run", TASKS[:2], tags=tags), plan_only=True)
