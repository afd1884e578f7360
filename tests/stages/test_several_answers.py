"""Several answers to a row: drawn, gathered, picked, imported again, and what a run makes of their pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.gather import Gather
from spin_core.config.generate import Generate
from spin_core.config.profile import parse
from spin_core.config.runtime import Runtime
from spin_core.data.rows import FILES, Row, answer_id, parts_of, read_pairs, write_rows
from spin_core.data.token_file import TokenFile
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Job
from spin_core.modeling import sampled_logps
from spin_core.stages import demo_model, gather, generate, import_pairs, tokenize
from spin_core.store.keys import config_payload

CHAT = ChatSection(max_prompt_length=60)
N = 11
"""More than nine: as text `x#10` is before `x#2`."""


def job_at(folder: Path, notes: list[str] | None = None, **digests: str) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    send = lambda event: notes.append(event["note"]) if notes is not None and "note" in event else None  # noqa: E731
    return Job(folder, folder, Runtime(device="cpu", threads=1), {"model": "m", **digests}, send)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model, six rows (of whose prompts one leaves no room), their tokens and shards."""
    root = tmp_path_factory.mktemp("made")
    demo_model.run({}, demo_model.Config(seed=5), job_at(root / "model"))
    (root / "rows").mkdir()
    for split, name in FILES.items():
        texts = [f"Say {split} {i}" for i in range(3)] + ["x" * 50] * (split == "train")
        rows = [Row(f"{split}{i}", [{"role": "user", "content": text}], f"said {i}") for i, text in enumerate(texts)]
        write_rows(root / "rows" / name, rows)
    config = tokenize.Config(chat=CHAT, max_rejected=0.5, shard_rows=2)
    inputs = {"tokenizer": root / "model", "rows": root / "rows"}
    tokenize.run(inputs, config, job_at(root / "tokens"))
    shards = [root / "tokens" / one["file"] for one in json.loads((root / "tokens" / "shards.json").read_text())]
    return {"root": root, "model": root / "model", "rows": root / "rows", "tokens": root / "tokens", "shards": shards}


def drawn(made: dict[str, Any], to: Path, shards: list[Path], n: int, **how: Any) -> tuple[dict[str, dict], dict, list]:
    """The lines of a shard's answers by id, the summary and the notes."""
    part, notes = Generate(**{"max_new_tokens": 80, "n": n, "logprobs": True, **how}), []
    prompts = to / "prompts.jsonl"
    to.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(shard.read_text() for shard in shards))
    config = generate.Config(generate=part, chat=CHAT, seed=3)
    summary = generate.run({"model": made["model"], "prompts": prompts}, config, job_at(to, notes))
    lines = [json.loads(line) for line in (to / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    return {line["id"]: line for line in lines}, summary, notes


@pytest.fixture(scope="module")
def answers(made: dict[str, Any]) -> Path:
    """N answers to every row, of which some are cut and some the same."""
    drawn(made, made["root"] / "answers", made["shards"], N, temperature=0.4)
    return made["root"] / "answers"


def pairs_of(made: dict[str, Any], answers: Path, to: Path, n: int = N, **how: Any) -> tuple[dict[str, list], dict]:
    """The pairs of a gather, and quality.json. Token files and pairs must agree."""
    inputs = {"rows": made["rows"], "tokens": made["tokens"], "answers": [answers]}
    gather.run(inputs, gather.Config(gather=Gather(**how), n=n), job_at(to))
    pairs = {split: read_pairs(to / name) for split, name in FILES.items()}
    for split in FILES:
        assert TokenFile(to / f"{split}_tokens.arrow").ids == [pair.id for pair in pairs[split]]
    return pairs, json.loads((to / "quality.json").read_text())


def tokens(line: dict) -> list[int]:
    return line["token_ids"]


def test_each_answer_has_a_draw_of_its_own_and_the_first_is_that_of_n_1(made: dict[str, Any], tmp_path: Path) -> None:
    """Catches one seed for all answers of a row, answers that depend on shard or n, a second engine call, and prompts
    without room that are counted once an answer."""
    several, summary, notes = drawn(made, tmp_path / "3", made["shards"], 3)
    alone, *_ = drawn(made, tmp_path / "1", made["shards"], 1)
    fits = [id for id, line in alone.items() if line["finish"] != "rejected"]
    assert len(fits) == 6 and set(several) == {answer_id(id, k) for id in alone for k in range(3)}
    assert all(tokens(several[id]) == tokens(line) for id, line in alone.items())
    assert all(len({tuple(several[answer_id(id, k)]["token_ids"]) for k in range(3)}) == 3 for id in fits)
    assert (summary["answers"], summary["rejected"]) == (18, 1) and notes[0].startswith("1 prompt does not fit")
    one, *_ = drawn(made, tmp_path / "shard", made["shards"][:1], 2)
    assert all(tokens(several[id]) == tokens(line) for id, line in one.items()) and len(one) < len(several)


def test_keys_of_one_answer_are_as_before() -> None:
    """Catches a default that enters keys: every answer would be drawn, and every pair made, again."""
    assert config_payload(Generate(n=1)) == config_payload(Generate()) and "n" not in config_payload(Generate())
    assert config_payload(gather.Config(gather=Gather(), n=1)) == config_payload(gather.Config(gather=Gather()))
    assert "pick" not in config_payload(Gather()) and config_payload(Generate(n=2))["n"] == 2


def test_all_answers_are_pairs_in_the_order_of_rows_and_draws(
    made: dict[str, Any], answers: Path, tmp_path: Path
) -> None:
    """Catches an answer under another one's id or beside another row, log-probs under a foreign id, and figures of
    rows where pairs are meant."""
    lines = {line["id"]: line for line in map(json.loads, (answers / "answers.jsonl").read_text().splitlines())}
    pairs, quality = pairs_of(made, answers, tmp_path / "all")
    assert [pair.id for pair in pairs["train"]] == [answer_id(f"train{i}", k) for i in range(3) for k in range(N)]
    assert all(pair.generated == lines[pair.id]["text"] for split in FILES for pair in pairs[split])
    file = TokenFile(tmp_path / "all" / "train_tokens.arrow")
    assert all(row["generated"].tolist() == lines[id]["token_ids"] for id, row in zip(file.ids, file, strict=True))
    counts = {name: quality["train"][name] for name in ("rows", "pairs", "prompts", "not_picked", "rejected")}
    assert counts == {"rows": 3 * N, "pairs": 3 * N, "prompts": 3, "not_picked": 0, "rejected": 1}
    logps = [json.loads(one) for one in (tmp_path / "all" / sampled_logps.FILE).read_text().splitlines()]
    assert all(one["token_ids"] == lines[one["id"]]["token_ids"] for one in logps) and len(logps) == 6 * N


PICKS = {
    "first": lambda own: own[0],
    "shortest": lambda own: min(own, key=lambda line: line["tokens"]),
    "hardest": lambda own: max(own, key=lambda line: sum(line["logps"]) / line["tokens"]),
}


@pytest.mark.parametrize("pick", list(PICKS))
def test_one_answer_is_picked(pick: str, made: dict[str, Any], answers: Path, tmp_path: Path) -> None:
    """Catches a pick by another measure (the sum of log-probs, characters), text and ids of two answers in one pair,
    and answers that are not taken and not counted."""
    lines = {line["id"]: line for line in map(json.loads, (answers / "answers.jsonl").read_text().splitlines())}
    pairs, quality = pairs_of(made, answers, tmp_path / "one", pick=pick)
    assert [pair.id for pair in pairs["train"]] == ["train0", "train1", "train2"]
    assert quality["train"]["not_picked"] == 3 * (N - 1) and quality["train"]["rows"] == 3
    file = TokenFile(tmp_path / "one" / "train_tokens.arrow")
    chosen = [PICKS[pick]([lines[answer_id(pair.id, k)] for k in range(N)]) for pair in pairs["train"]]
    assert [pair.generated for pair in pairs["train"]] == [line["text"] for line in chosen]
    assert [row["generated"].tolist() for row in file] == [line["token_ids"] for line in chosen]
    if pick == "hardest":
        assert {line["id"] for line in chosen} != {pair.id for pair in pairs["train"]}, "else it is `first`"
        logps = map(json.loads, (tmp_path / "one" / sampled_logps.FILE).read_text().splitlines())
        assert [(one["id"], one["token_ids"]) for one in logps if one["split"] == "train"] == [
            (pair.id, line["token_ids"]) for pair, line in zip(pairs["train"], chosen, strict=True)
        ]


def test_what_cannot_be_is_refused_in_one_sentence(made: dict[str, Any], answers: Path, tmp_path: Path) -> None:
    """Catches n equal answers of a greedy opponent, a pick that goes by nothing, and an answer too few."""
    profile = {"name": "p", "model": {"path": "m"}, "dataset": {"path": "d"}}
    for changes, message in (
        ({"generate": {"n": 2, "temperature": 0}}, "n above 1 needs a temperature above 0"),
        ({"generate": {"n": 2}, "gather": {"pick": "hardest"}}, "set generate.logprobs: true"),
        ({"gather": {"pick": "first"}}, "set generate.n above 1"),
        ({"generate": {"n": 2}, "gather": {"pick": "first"}, "overrides": {1: {"generate": {"n": 1}}}}, "iteration 1"),
    ):
        with pytest.raises(BadInput, match=message):
            parse({**profile, **changes}, "test")
    with pytest.raises(StageFailed, match=f"rows have no answer: .*#{N + 1}"):
        pairs_of(made, answers, tmp_path / "many", N + 1)
    with pytest.raises(StageFailed, match=f"among the rows: .*#{N}"):
        pairs_of(made, answers, tmp_path / "few", N - 1)
    drawn(made, tmp_path / "plain", made["shards"], 2, logprobs=False)
    with pytest.raises(StageFailed, match=r"row train0: .*generate.logprobs: true") as raised:
        pairs_of(made, tmp_path / "plain", tmp_path / "hardest", 2, pick="hardest")
    assert "\n" not in str(raised.value)


def test_pairs_of_several_answers_are_imported_as_they_were(
    made: dict[str, Any], answers: Path, tmp_path: Path
) -> None:
    """Catches an import that keeps one answer of each row, counts equal draws as one pair, numbers them anew where one
    was dropped, or loses the ids that were sampled."""
    lines = [json.loads(line) for line in (answers / "answers.jsonl").read_text().splitlines()]
    stopped = [line for line in lines if parts_of(line["id"])[0] == "train0" and line["finish"] == "stop"]
    stopped[1] |= {name: stopped[0][name] for name in ("text", "tokens", "token_ids", "logps")}
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs, quality = pairs_of(made, tmp_path / "answers", tmp_path / "pairs", truncated="drop")
    assert 0 < quality["train"]["dropped"] < 3 * N
    texts = [(parts_of(pair.id)[0], pair.generated) for pair in pairs["train"]]
    assert len(set(texts)) < len(texts), "two answers to a row are the same text"
    inputs = {"source": tmp_path / "pairs", "rows": made["rows"], "tokens": made["tokens"], "tokenizer": made["model"]}
    summary = import_pairs.run(inputs, import_pairs.Config(), job_at(tmp_path / "again"))
    assert summary["rejected"] == {} and summary["train_pairs"] == len(pairs["train"])
    for name in (*FILES.values(), "train_tokens.arrow", "test_tokens.arrow", "quality.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pairs" / name).read_bytes()
