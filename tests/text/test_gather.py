"""Gather: exactly one answer for each row, whatever the shards' order, and honest figures about the pairs."""

import json
from dataclasses import replace

import pytest

from spin_core.analysis.results import read_model
from spin_core.analysis.summary import model_row
from spin_core.config.gather import Gather
from spin_core.data import token_file
from spin_core.data.rows import FILES, read_pairs, read_rows, write_rows
from spin_core.data.token_file import TokenFile
from spin_core.errors import StageFailed
from spin_core.job import Job
from spin_core.report.tables import TITLES, figure_cells
from spin_core.stages import gather, reformat
from spin_core.stages.gather import Config
from tests.text.token_trees import tokens_of


@pytest.fixture
def rows(tmp_path, jsonl):
    """A rows tree of 30 train and 10 test rows, and beside it, in `tokens`, its tokens."""
    train = jsonl([{"question": f"q{i}", "answer": f"real {i}"} for i in range(30)], "train.jsonl")
    test = jsonl([{"question": f"t{i}", "answer": f"real {i} "} for i in range(10)], "test.jsonl")
    (tmp_path / "rows").mkdir()
    config = reformat.Config(dataset=reformat.Dataset(), seed=1)
    reformat.run({"source": train, "test_source": test}, config, Job(tmp_path / "rows", tmp_path / "scratch"))
    tokens_of(tmp_path / "rows", tmp_path / "tokens")
    return tmp_path / "rows"


@pytest.fixture
def answers(rows, tmp_path):
    """Writes answers trees for all shards (`change` may alter or drop each) and gives their paths."""

    def write(change=lambda answer: answer) -> list:
        trees = []
        tokens = rows.parent / "tokens"
        for number, shard in enumerate(json.loads((tokens / "shards.json").read_text())):
            made = []
            for line in (tokens / shard["file"]).read_text().splitlines():
                id = json.loads(line)["id"]
                made.append(
                    change({"id": id, "text": f"made {id}", "finish": "stop", "tokens": 3, "token_ids": [1, 2, 3]})
                )
            trees.append(tmp_path / f"answers{number}")
            trees[-1].mkdir(exist_ok=True)
            text = "".join(json.dumps(answer) + "\n" for answer in made if answer)
            (trees[-1] / "answers.jsonl").write_text(text)
        return trees

    return write


def gathered(job, rows, trees, name="pairs", **settings):
    given = job(name)
    inputs = {"rows": rows, "tokens": rows.parent / "tokens", "answers": trees}
    summary = gather.run(inputs, Config(gather=Gather(**settings)), given)
    for split, name in FILES.items():
        assert token_ids(given.out, split).keys() == {pair.id for pair in read_pairs(given.out / name)}
    return given.out, summary


def token_ids(tree, split):
    """Row id → the ids of each column of a split's token file."""
    file = TokenFile(tree / token_file.FILES[split])
    return {id: {name: ids.tolist() for name, ids in row.items()} for id, row in zip(file.ids, file, strict=True)}


def test_run_all_shards_in_any_order_give_each_row_its_answer(job, rows, answers):
    """Catches: answers joined by position, or a tree that depends on which shard came first."""
    trees = answers()
    out, summary = gathered(job, rows, trees)
    again, _ = gathered(job, rows, trees[::-1], "again")
    assert (summary["train_pairs"], summary["test_pairs"]) == (30, 10)
    for name in FILES.values():
        assert (out / name).read_bytes() == (again / name).read_bytes()
        pairs = read_pairs(out / name)
        assert [(p.id, p.prompt, p.real) for p in pairs] == [(r.id, r.prompt, r.answer) for r in read_rows(rows / name)]
        assert all(p.generated == f"made {p.id}" and p.finish == "stop" for p in pairs)
    for name in token_file.FILES.values():
        assert (out / name).read_bytes() == (again / name).read_bytes()
    assert (out / "quality.json").read_bytes() == (again / "quality.json").read_bytes()


def test_run_ids_are_those_that_were_sampled_beside_those_of_the_rows(job, rows, answers):
    """Catches: an answer's text tokenised again, in whose ids another answer than the sampled one is scored; the ids of
    another row's answer; and real answers or prompts with other ids than SFT's."""
    numbers = {row.id: i for i, row in enumerate(r for name in FILES.values() for r in read_rows(rows / name))}
    dropped = read_rows(rows / FILES["train"])[7].id

    def change(answer):
        ids = [numbers[answer["id"]], 2, 500][: 1 + numbers[answer["id"]] % 3]
        finish = "length" if answer["id"] == dropped else "stop"
        return {**answer, "token_ids": ids, "tokens": len(ids), "finish": finish, "text": "the same"}

    out, _ = gathered(job, rows, answers(change)[::-1], truncated="drop")
    for split in FILES:
        of_rows, of_pairs = (token_ids(tree, split) for tree in (rows.parent / "tokens", out))
        assert [*of_pairs] == [id for id in of_rows if id != dropped]
        for id, row in of_pairs.items():
            sampled = [numbers[id], 2, 500][: 1 + numbers[id] % 3]
            expected = {"prompt": of_rows[id]["prompt"], "real": of_rows[id]["answer"], "generated": sampled}
            assert row == expected and row["prompt"] and row["real"]


def test_run_rows_that_tokenize_rejected_are_no_pairs(job, rows, answers, jsonl, tmp_path):
    """Catches: rows and tokens joined by position, and an answer that is missed for a row which no shard has."""
    marked = [{"question": f"q{i}", "answer": f"real {i}" + "<|im_start|>" * (i in (0, 7))} for i in range(30)]
    again = tmp_path / "again"
    (again / "rows").mkdir(parents=True)
    inputs = {"source": jsonl(marked, "marked.jsonl"), "test_source": tmp_path / "test.jsonl"}
    config = reformat.Config(dataset=reformat.Dataset(), seed=1)
    reformat.run(inputs, config, Job(again / "rows", tmp_path / "scratch"))
    assert tokens_of(again / "rows", again / "tokens")["rejected"] == {"special token in the text": 2}
    ids = {json.loads(line)["id"] for line in (again / "tokens" / "rejects.jsonl").read_text().splitlines()}
    trees = answers(lambda answer: None if answer["id"] in ids else answer)
    out, summary = gathered(job, again / "rows", trees)
    train = [row.id for row in read_rows(again / "rows" / FILES["train"])]
    assert len(ids) == 2 and ids < set(train) and summary["train_pairs"] == 28 and summary["rejected"] == 0
    assert [pair.id for pair in read_pairs(out / FILES["train"])] == [id for id in train if id not in ids]


def test_run_pairs_of_a_mix_say_which_set_they_are_of(job, tmp_path, answers):
    """Catches: a source that is lost on the way to the pairs, and quality by set that is not a part of the whole."""
    rows = tmp_path / "rows"
    for split, name in FILES.items():
        held = [replace(row, source="odd" if int(row.id, 16) % 2 else "even") for row in read_rows(rows / name)]
        write_rows(rows / name, held, sources=True)
        assert {row.source for row in read_rows(rows / name)} == {"odd", "even"}, split

    def change(answer):
        odd = int(answer["id"], 16) % 2
        return {**answer, "text": "" if odd else answer["text"], "finish": "length" if odd else "stop"}

    out, _ = gathered(job, rows, answers(change), truncated="keep")
    quality = json.loads((out / "quality.json").read_text())
    for split, name in FILES.items():
        pairs = read_pairs(out / name)
        assert all(pair.source == ("odd" if int(pair.id, 16) % 2 else "even") for pair in pairs)
        whole, parts = quality[split], quality[split].pop("sources")
        for figure in ("rows", "pairs", "empty", "truncated", "identical_to_real", "dropped"):
            assert sum(part[figure] for part in parts.values()) == whole[figure]
        assert parts["odd"]["truncated_fraction"] == 1 == parts["odd"]["empty_fraction"]
        assert parts["even"]["truncated"] == 0 == parts["even"]["empty"]
    dropped, _ = gathered(job, rows, answers(change), "dropped", truncated="drop")
    parts = json.loads((dropped / "quality.json").read_text())["train"]["sources"]
    assert (parts["odd"]["pairs"], parts["even"]["dropped"]) == (0, 0)


def test_run_pairs_keep_the_tools_of_their_prompts(job, tmp_path, answers):
    """Catches: pairs that are pushed or imported without the functions that their prompts have."""
    rows, functions = tmp_path / "rows", '[{"type": "function", "function": {"name": "f"}}]'
    for name in FILES.values():
        held = [replace(row, prompt=[{**row.prompt[0], "tools": functions}]) for row in read_rows(rows / name)]
        write_rows(rows / name, held, tools=True)
    out, _ = gathered(job, rows, answers())
    pairs = [pair for name in FILES.values() for pair in read_pairs(out / name)]
    assert pairs and all(pair.prompt[0]["tools"] == functions for pair in pairs)


def test_run_missing_answers_names_five_and_the_count(job, rows, answers):
    """Catches: fewer pairs without a word, as when the reference lost a shard."""
    missing = sorted(row.id for name in FILES.values() for row in read_rows(rows / name))[:7]
    with pytest.raises(StageFailed, match=f"7 rows have no answer: {', '.join(missing[:5])}, …"):
        gathered(job, rows, answers(lambda answer: None if answer["id"] in missing else answer))


def test_run_shard_given_twice_is_an_error(job, rows, answers):
    """Catches: the reference's doubled rows (its published set had each twice)."""
    trees = answers()
    with pytest.raises(StageFailed, match="have more than one answer"):
        gathered(job, rows, [*trees, trees[0]])


def test_run_answer_to_unknown_row_is_an_error(job, rows, answers, tmp_path):
    """Catches: a stale shard of another dataset taken in silently."""
    stale = tmp_path / "stale.jsonl"
    stale.write_text(json.dumps({"id": "0123", "text": "x", "finish": "stop", "tokens": 1, "token_ids": [1]}) + "\n")
    with pytest.raises(StageFailed, match="1 rows are answered that are not among the rows: 0123 "):
        gathered(job, rows, [*answers(), stale])


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a"',
        "[]",
        '{"id": "a", "text": null, "finish": "stop", "tokens": 1, "token_ids": [1]}',
        '{"id": "a", "text": "", "finish": "stop", "tokens": 1}',
        '{"id": "a", "text": "", "finish": "stop", "tokens": 2, "token_ids": [1]}',
        '{"id": "a", "text": "", "finish": "stop", "tokens": 1, "token_ids": [1.5]}',
        '{"id": "a", "text": "", "finish": "stop", "tokens": 1, "token_ids": [4294967296]}',
        "\xff",
    ],
)
def test_run_damaged_shard_names_file_and_line(job, rows, answers, line):
    """Catches: a traceback, a half-written shard that is read up to its tear, and an answer without its ids."""
    trees = answers()
    with (trees[0] / "answers.jsonl").open("ab") as file:
        count = (trees[0] / "answers.jsonl").read_bytes().count(b"\n")
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(StageFailed, match=f"answers0/answers.jsonl, line {count + 1}: not a shard of answers"):
        gathered(job, rows, trees)


def test_run_truncated_answers_are_kept_or_dropped_as_configured(job, rows, answers):
    """Catches: `drop` that keeps cut answers, `keep` that forgets that they were cut, or figures of the wrong set."""
    cut = {read_rows(rows / FILES["train"])[i].id for i in (0, 3, 4)}
    trees = answers(lambda a: {**a, "finish": "length"} if a["id"] in cut else a)
    kept, _ = gathered(job, rows, trees, "kept")
    dropped, summary = gathered(job, rows, trees, "dropped", truncated="drop")
    assert {p.id for p in read_pairs(kept / FILES["train"]) if p.finish == "length"} == cut
    assert {p.id for p in read_pairs(dropped / FILES["train"])} == {
        row.id for row in read_rows(rows / FILES["train"]) if row.id not in cut
    }
    quality = json.loads((dropped / "quality.json").read_text())["train"]
    assert (quality["rows"], quality["pairs"], quality["truncated"], quality["dropped"]) == (30, 27, 3, 3)
    assert summary["train_pairs"] == 27 and summary["truncated_fraction"] == 0.1


def test_run_report_keeps_cut_answers_and_lists_them(job, rows, answers):
    """Catches: `report` that drops, that lists finished answers, or is silent; a list under another policy."""
    cut = {read_rows(rows / FILES["train"])[2].id: "train", read_rows(rows / FILES["test"])[1].id: "test"}
    trees = answers(lambda a: {**a, "finish": "length", "tokens": 9, "token_ids": [5] * 9} if a["id"] in cut else a)
    kept, _ = gathered(job, rows, trees, "kept")
    given, notes = job("listed"), []
    given.send = notes.append
    inputs = {"rows": rows, "tokens": rows.parent / "tokens", "answers": trees}
    gather.run(inputs, Config(gather=Gather(truncated="report")), given)
    for name in FILES.values():
        assert (given.out / name).read_bytes() == (kept / name).read_bytes()
    lines = [json.loads(line) for line in (given.out / "truncated.jsonl").read_text().splitlines()]
    assert lines == [{"id": id, "split": split, "tokens": 9} for id, split in cut.items()]
    assert {"note": "2 of 40 answers were cut at max_new_tokens; truncated.jsonl lists them."} in notes
    assert not (kept / "truncated.jsonl").exists()


def _rejecting(ids):
    change = {"finish": "rejected", "text": "", "tokens": 0, "token_ids": [], "why": "its prompt of 9 tokens …"}
    return lambda answer: {**answer, **change} if answer["id"] in ids else answer


def test_run_rejected_rows_are_no_pairs_and_counted(job, rows, answers):
    """Catches: an empty answer trained on as if the model had given it, a reject counted as empty or cut, or a run
    without rejects whose quality.json (and so every key behind it) changed."""
    train = read_rows(rows / FILES["train"])
    ids = sorted([train[5].id, train[1].id])
    trees = answers(_rejecting(ids))
    for policy in ("keep", "drop", "report"):
        out, summary = gathered(job, rows, trees, policy, truncated=policy)
        assert [p.id for p in read_pairs(out / FILES["train"])] == [row.id for row in train if row.id not in ids]
        quality = json.loads((out / "quality.json").read_text())
        assert {
            "rows": 28,
            "pairs": 28,
            "empty": 0,
            "truncated": 0,
            "dropped": 0,
            "rejected": 2,
            "rejected_ids": ids,
        } == {
            name: quality["train"][name]
            for name in ("rows", "pairs", "empty", "truncated", "dropped", "rejected", "rejected_ids")
        }
        assert "rejected" not in quality["test"]
        assert summary["rejected"] == 2 and summary["train_pairs"] == 28
    assert (out / "truncated.jsonl").read_text() == ""


def test_run_rejected_rows_are_shown_in_the_report(job, rows, answers):
    """Catches: a report that is silent about rows which were left out, or shows a figure of 0 where there are none."""
    out, _ = gathered(job, rows, answers(_rejecting({read_rows(rows / FILES["train"])[5].id})))
    plain, _ = gathered(job, rows, answers(), "plain")
    shown = []
    for tree in (out, plain):
        row = model_row(read_model("θ_1", "iteration", 0, None, None, tree), None)
        shown.append((row["pairs"].get("rejected"), (TITLES[-1], *figure_cells(row)[-1])))
    assert shown == [(1, ("empty", "0.0 %", "1 rejected")), (None, ("empty", "0.0 %", ""))]


def test_run_rejected_ids_are_listed_up_to_a_bound(job, rows, answers, monkeypatch):
    """Catches: a count that is that of the list, and a report page of a million ids."""
    monkeypatch.setattr(gather, "MAX_IDS", 3)
    out, _ = gathered(job, rows, answers(_rejecting({row.id for row in read_rows(rows / FILES["train"])[:9]})))
    quality = json.loads((out / "quality.json").read_text())["train"]
    assert quality["rejected"] == 9 and len(quality["rejected_ids"]) == 3


def test_run_all_prompts_of_a_split_rejected_says_so(job, rows, answers):
    """Catches: an empty training set, or advice about cut answers where prompts are too long."""
    with pytest.raises(StageFailed, match=r"None of the 10 prompts of the test split fits .* chat\.max_prompt_length"):
        gathered(job, rows, answers(_rejecting({row.id for row in read_rows(rows / FILES["test"])})))


def test_run_log_probs_of_the_engine_are_kept_as_sums_of_the_kept_pairs(job, rows, answers):
    """Catches: sums of other rows, of dropped or rejected ones, and a file where nothing was recorded."""
    ids = [row.id for name in FILES.values() for row in read_rows(rows / name)]
    cut, rejected = ids[3], ids[31]

    def change(answer):
        answer = _rejecting({rejected})({**answer, "finish": "length"} if answer["id"] == cut else answer)
        logps = [-0.25, -1.0, -ids.index(answer["id"])]
        return answer if answer["id"] == rejected else {**answer, "logps": logps, "model": "d"}

    out, _ = gathered(job, rows, answers(change), truncated="drop")
    lines = [json.loads(line) for line in (out / "engine_logps.jsonl").read_text().splitlines()]
    assert lines == [
        {"id": id, "split": "train" if i < 30 else "test", "model": "d", "token_ids": [1, 2, 3], "logps": -1.25 - i}
        for i, id in enumerate(ids)
        if id not in (cut, rejected)
    ]
    plain, _ = gathered(job, rows, answers(), "plain")
    assert not (plain / "engine_logps.jsonl").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"logps": [-1.0, -1.0]},
        {"logps": [-1.0, -1.0, float("nan")]},
        {"model": None},
        {"logps": 3},
        {"logps": ["a"] * 3},
    ],
)
def test_run_damaged_log_probs_name_file_and_line(job, rows, answers, change):
    """Catches: a sum over fewer tokens than the answer has, or of no model, that score would take."""
    trees = answers(lambda a: {**a, "logps": [-1.0] * 3, "model": "d", **change})
    with pytest.raises(StageFailed, match=r"answers0/answers\.jsonl, line 1: not a shard of answers"):
        gathered(job, rows, trees)


def test_run_drop_that_leaves_nothing_says_so(job, rows, answers):
    """Catches: an empty training set that fails only in finetune."""
    trees = answers(lambda a: {**a, "finish": "length"})
    with pytest.raises(StageFailed, match="raise generate\\.max_new_tokens"):
        gathered(job, rows, trees, truncated="drop")


def test_run_quality_counts_what_is_odd(job, rows, answers):
    """Catches: counts over the wrong split, or a repeated answer counted as none or as all."""
    test = read_rows(rows / FILES["test"])
    texts = {test[0].id: "", test[1].id: " ", test[2].id: test[2].answer + "\n", test[3].id: "same", test[4].id: "same"}
    texts |= {row.id: f"{'x' * 9}{i}" for i, row in enumerate(test[5:])}
    trees = answers(lambda a: {**a, "text": texts.get(a["id"], a["text"]), "tokens": 4, "token_ids": [1, 2, 3, 4]})
    out, _ = gathered(job, rows, trees)
    quality = json.loads((out / "quality.json").read_text())["test"]
    assert {k: quality[k] for k in ("empty", "identical_to_real", "truncated", "duplicate_answers")} == {
        "empty": 2,
        "identical_to_real": 1,
        "truncated": 0,
        "duplicate_answers": 1,
    }
    assert quality["empty_fraction"] == 0.2 and quality["generated_tokens_mean"] == 4
    lengths = [len(texts[row.id]) for row in test]
    assert quality["generated_characters_mean"] == pytest.approx(sum(lengths) / 10)
    assert quality["real_characters_mean"] == 7 and quality["real_characters_median"] == 7
    assert quality["length_gap_mean"] == pytest.approx(7 - sum(lengths) / 10)
    assert json.loads((out / "quality.json").read_text())["train"]["empty"] == 0
