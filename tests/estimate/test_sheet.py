"""The cost sheet of `spinloop plan`: what is counted, what is refused, and with which remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.plan import check, costs, setting_of
from spin_core.config.profile import Config, load_profile, parse
from spin_core.errors import BadInput
from spin_core.estimate import fit, hardware, needs, sheet, text, todo
from spin_core.estimate.needs import GIB, NEEDS, Setting
from spin_core.runtime import gpus
from tests.places import entry as ledger_entry

BIG = ("zephyr-7b", "zephyr-7b-lora", "tulu-70b")
UNSHARDED = ["runtime.compute.processes=1", "runtime.compute.sharding=none"]
ROOT = Path(__file__).parents[2]
COUNTS = {"zephyr-7b": 8, "zephyr-7b-lora": 1, "tulu-70b": 8}


def _setting(name: str, *sets: str, gpu: str = "h100-80gb", count: int = 8) -> tuple[Setting, Config]:
    config, base = load_profile(name, list(sets))
    setting = setting_of(config, base, None, gpu, count)
    assert isinstance(setting, Setting)
    return setting, config


def _output(*args: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command line where the hub cannot be reached: its address is a local port that nobody listens on."""
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "flows.cli", *args, "--store", str(home / "store")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=240)


def test_plan_without_a_hub_still_shows_the_costs(tmp_path: Path) -> None:
    """Catches a plan that ends where the dataset cannot be read, and a refusal without exit code 2."""
    sets = [part for one in UNSHARDED for part in ("--set", one)]
    ran = _output("plan", "zephyr-7b", "--gpu", "h100-80gb", "--gpus", "8", *sets, home=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert "the hub cannot be read" in ran.stderr and "Traceback" not in ran.stderr
    table = [line for line in ran.stdout.splitlines() if line.startswith(("finetune", "total"))]
    assert len(table) == 2 and "54 GiB" in table[0], "four models of 7.24 billion weights in bfloat16"
    assert all(len(line) <= 100 for line in ran.stdout.splitlines()), ran.stdout
    refused = ran.stderr.splitlines()[-1]
    assert "finetune needs about" in refused and "h100-80gb has 80: set runtime.compute.processes: 8" in refused
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", BIG)
def test_big_profiles_fit_the_machines_that_they_are_for(name: str) -> None:
    """Catches a shipped profile that would be refused, or whose sheet lacks a stage."""
    config, base = load_profile(name)
    result = costs(config, base, None, None, "h100-80gb", COUNTS[name])
    assert not result.misfit and result.certain
    stages = [line.split()[0] for line in result.lines[1:]]
    assert stages[:9] == [
        "reformat", "tokenize", "generate", "gather", "score", "finetune", "evaluate", "harness", "total",
    ]  # fmt: skip


def test_hours_of_a_7b_model_are_those_of_the_floor() -> None:
    """Catches a factor of two in operations: a pair of 122 + 150 + 150 tokens is 18 TFLOP in training and 6 in scoring
    (the project's own arithmetic, made before this model)."""
    from spin_core.estimate import work
    from spin_core.estimate.activations import PassShape

    setting, _ = _setting("zephyr-7b")
    pair = PassShape([(122, (150, 150))])
    assert work.training_flops(setting.model, pair, False, False) == pytest.approx(18e12, rel=0.05)
    assert work.reading_flops(setting.model, pair) == pytest.approx(6e12, rel=0.05)
    again = work.training_flops(setting.model, pair, True, False) / work.training_flops(
        setting.model, pair, False, False
    )
    assert again == pytest.approx(4 / 3)


def test_state_is_divided_as_the_setting_says() -> None:
    """Catches ZeRO-3 that divides nothing, and gradients that zero1 already divides: 29 GB each at 7.24 billion."""
    sizes = {}
    for kind in ("none", "zero1", "zero2", "zero3"):
        setting, config = _setting("zephyr-7b", f"runtime.compute.sharding={kind}")
        sizes[kind] = NEEDS["finetune"](setting, config).gpu / 2**30
    assert sizes["none"] > 110 and sizes["zero3"] < 40
    assert sizes["none"] > sizes["zero1"] > sizes["zero2"] > sizes["zero3"]
    assert sizes["zero1"] - sizes["zero2"] == pytest.approx(7.24e9 * 4 * 7 / 8 / 2**30 * 1.05, rel=0.02)


def test_remedy_is_the_first_that_fits() -> None:
    """Catches a remedy that does not fit either, and a dear one where a cheap one does."""
    setting, config = _setting("zephyr-7b", *UNSHARDED)
    assert setting.hardware.gpu is not None
    result = fit.remedy(setting, config, "finetune")
    assert result is not None and result[1].gpu <= setting.hardware.gpu.gib * GIB
    assert result[0] == {"runtime.compute.processes": 8, "runtime.compute.sharding": "zero2"}
    for change in fit.candidates(setting, config, "finetune"):
        if change == result[0]:
            break
        assert NEEDS["finetune"](setting, fit.changed(config, change)).gpu > setting.hardware.gpu.gib * GIB, change
    setting, config = _setting("zephyr-7b-lora", "runtime.gradient_checkpointing=false", "runtime.micro_tokens=32768")
    result = fit.remedy(setting, config, "finetune")
    assert result is not None and list(result[0]) == ["runtime.micro_tokens"]


@pytest.mark.parametrize(
    ("name", "sets", "gpu", "count", "message"),
    [
        ("zephyr-7b", UNSHARDED, "h100-80gb", 1, "runtime.compute.offload: optimizer"),
        ("zephyr-7b-lora", [], "rtx4090", 1, "quantize: nf4"),
        ("tulu-70b", ["runtime.compute.nodes=1", "runtime.compute.offload=none"], "h100-80gb", 8, "offload: optimizer"),
        ("tulu-70b", ["runtime.tensor_parallel=1"], "h100-80gb", 8, "runtime.tensor_parallel: 2"),
        ("tulu-70b", ["runtime.compute.offload=none"], "l40s", 8, "runtime.compute"),
    ],
)
def test_refusal_names_the_setting_that_would_fit(name, sets, gpu, count, message) -> None:
    """Catches a refusal without a way out, or with one that this stage does not read."""
    setting, config = _setting(name, *sets, gpu=gpu, count=count)
    stages = [line.stage for line in sheet.lines(setting, config, todo.everything(config, setting.data))]
    sentence = fit.misfit(setting, config, stages)
    assert message in sentence and "would be" in sentence, sentence


def test_losses_cost_what_they_read() -> None:
    """Catches a sheet that takes every loss for SPIN's: three scores for one, a third answer that is free, and dft's
    rows counted once for each set of pairs."""
    plain, third = _setting("zephyr-7b"), _setting("zephyr-7b", "finetune.beta=", "overrides=", "finetune.loss=tspin")
    rows = _setting("zephyr-7b", "finetune.beta=", "overrides=", "finetune.loss=dft")
    left = {"score": [(1, 1, 1), (1, 0, 1)], "finetune": [1]}

    def hours(of: tuple[Setting, Config], **todo_: list) -> dict[str, float]:
        lines = sheet.lines(*of, todo.Todo(**todo_))
        return {line.stage: line.gpu_seconds or 0.0 for line in lines}

    spin = hours(plain, **left)
    assert hours(third, finetune=[1])["finetune"] > 1.2 * spin["finetune"]
    assert hours(rows, finetune=[1])["finetune"] < 0.9 * spin["finetune"]
    assert NEEDS["finetune"](*third).gpu >= NEEDS["finetune"](*plain).gpu
    assert NEEDS["score"](*third).gpu == NEEDS["score"](*plain).gpu
    assert not todo.everything(third[1], third[0].data).score
    assert hours(third, finetune=[1]).keys() == {"finetune"}


def test_cached_steps_cost_nothing() -> None:
    """Catches a sheet that lets people pay twice, and one that counts all shards where one is missing."""
    setting, config = _setting("zephyr-7b")
    entries = [
        ledger_entry("generate", "iter 0, shard 1/2", "", "would run", summary={"rows": 10}),
        ledger_entry("generate", "iter 0, shard 2/2", "k", "cached", summary={"rows": 30}),
        ledger_entry("finetune", "iter 0", "k", "cached"),
        ledger_entry("evaluate", "θ_1", "", "would run"),
    ]
    left = todo.of_ledger(entries, setting.data)
    assert left.generate == {0: 10} and not left.finetune and (left.evaluate, left.opposed) == (1, 1)
    assert [line.stage for line in sheet.lines(setting, config, left)] == ["generate", "evaluate"]
    assert not costs(config, Path(), [ledger_entry("finetune", "iter 0", "k", "cached")], None, "h100-80gb", 8).lines


@pytest.mark.parametrize("settings", [{}, {"iterations": 3, "history": 1}, {"control": {"lr": 1e-3, "max_length": 60}}])
def test_everything_is_what_the_dag_of_an_empty_store_has(settings: dict, tmp_path: Path) -> None:
    """Catches a DAG that has other steps than the sheet of a run that cannot be planned."""
    from flows.plan import planned

    profile = {"model": {"path": "builtin:tiny-llama"}, "dataset": {"path": "builtin:tasks"}, "sft": {"max_length": 60}}
    config = parse({**profile, "chat": {"max_prompt_length": 32}, "finetune": {"max_length": 60}, **settings}, "p")
    made = planned(config, str(tmp_path / "store"), tmp_path)
    data = todo.assumed(config)
    assert made.ledger is not None
    assert todo.of_ledger(made.ledger, data) == todo.everything(config, data)


@pytest.mark.parametrize(
    ("how", "train", "basis"),
    [
        ([{}, {}], (49792 + 7473) * 0.9, "assumed for UCLA-AGI/SPIN_iter0, openai/gsm8k/main"),
        ([{"limit": 1000}, {"limit": 500}], 1500, "assumed for"),
        ([{"weight": 3}, {"weight": 1}], 4 * 7473 * 0.9, "assumed for"),
        ([{}, {"path": "mine.jsonl"}], (49792 + 50000) * 0.9, "assumed, as nothing is known of mine here"),
    ],
)
def test_rows_of_a_mix_are_those_that_its_sets_give(how: list[dict], train: float, basis: str) -> None:
    """Catches an estimate of a mix by its first set, or by all rows where weights or limits take a part."""
    paths = ("UCLA-AGI/SPIN_iter0", "openai/gsm8k/main")
    sets = [{"path": path, **one} for path, one in zip(paths, how, strict=True)]
    data = todo.assumed(parse({"model": {"path": "m"}, "dataset": {"sets": sets}}, "p"))
    assert data.train == pytest.approx(train, abs=3) and data.basis.startswith(basis)
    assert 100 <= data.prompt <= 200 and data.answer > 120


def test_driver_names_are_known_gpus() -> None:
    """Catches an A100 of 40 GB that is taken for one of 80, and a GPU that is not listed without its memory."""
    named = {
        "NVIDIA H100 80GB HBM3, 81559": "h100-80gb", "NVIDIA A100-SXM4-40GB, 40960": "a100-40gb",
        "NVIDIA A100 80GB PCIe, 81920": "a100-80gb", "NVIDIA GeForce RTX 4090, 24564": "rtx4090",
    }  # fmt: skip
    for message, name in named.items():
        result = hardware.of_driver(message)
        assert result is not None and result.name == name and result.bfloat16
    other = hardware.of_driver("Some GPU, 16384")
    assert other is not None and (other.gib, other.bfloat16) == (16.0, 0.0)
    larger = hardware.of_driver("NVIDIA H100 NVL, 95830")
    assert larger is not None and larger.gib > 90 and not larger.bfloat16, "94 GB, and another speed"
    assert hardware.of_driver("garbage") is None
    with pytest.raises(BadInput, match="h100-80gb"):
        hardware.choose("h1000", 1, False)


def test_run_is_refused_where_the_drivers_gpu_is_too_small(monkeypatch, tmp_path: Path) -> None:
    """Catches a run that computes for hours before its first training pass dies, and a refusal where no GPU is seen."""
    from tests.estimate.cases import TIED
    from tests.estimate.measured import llama

    model = tmp_path / "model"
    llama(TIED).save_pretrained(model)
    shutil.copytree(ROOT / "tests/golden/tokenizer", model, dirs_exist_ok=True)  # a plan tokenizes
    rows = "".join(f'{{"prompt": "q {i}", "response": "a {i}"}}\n' for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    config = parse({"model": {"path": str(model)}, "dataset": {"path": str(tmp_path / "rows.jsonl")}}, "p")
    check(config, str(tmp_path / "store"), tmp_path)
    tool = tmp_path / "nvidia-smi"  # the driver's own tool is another program: this stands in for its answer
    tool.write_text('#!/bin/sh\ncase "$*" in *memory*) echo "Some GPU, 1100";; *) echo 0;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.visible() == ["0"]
    with pytest.raises(BadInput, match=r"needs about \d+ GiB per GPU, and Some GPU has 1.*`spinloop plan` shows"):
        check(config, str(tmp_path / "store"), tmp_path)


def test_sheet_counts_a_scored_prompt_once_a_set_and_a_real_answer_once_a_model() -> None:
    """Catches a sheet in which the older set's real answers are scored again, or those of a model whose own pairs the
    run does not score are free; and four answers that cost as much as four pairs."""

    def of(*sets: str) -> tuple[sheet.StageCost, tuple[float, ...], Config, Setting]:
        setting, config = _setting("zephyr-7b", "generate.decoder=sampled", "generate.temperature=1", *sets)
        left = todo.Todo(score=[(1, 1, 1), (1, 0, 1)])
        (line,) = sheet.lines(setting, config, left)
        prompt, (real, new) = needs.lengths(setting, config, config.finetune)
        return line, (prompt, real, new), config, setting

    line, (prompt, real, new), config, setting = of()
    assert line.tokens == (2 * prompt + real + 2 * new) * setting.data.rows
    assert line.saved == real * setting.data.rows
    (said,) = [one for one in text.basis(setting, config, [line], False) if one.startswith("Scoring")]
    share = real / (2 * (prompt + real + new))
    assert said == f"Scoring: {line.tokens:,.0f} tokens, {share:.0%} fewer than pair by pair."
    line, (prompt, real, new), config, setting = of("generate.n=4")
    assert line.tokens == (2 * prompt + real + 8 * new) * setting.data.rows
    assert line.saved == (6 * prompt + 7 * real) * setting.data.rows
    assert config.real_known(1, 0, 1) and not config.real_known(1, 1, 1)
    later, _ = load_profile("zephyr-7b", ["start.iteration=1", "history=1"])
    assert not later.real_known(1, 1, 0), "θ_0's own pairs are not scored by a run that begins later"


def test_sheet_counts_every_answer_and_a_prompt_of_a_group_once() -> None:
    """Catches a sheet of four answers to a row that is the sheet of one, answers that are not all gathered counted as
    pairs, and groups that cost as much as their pairs apart, or nothing in memory."""

    def of(*sets: str) -> dict[str, sheet.StageCost]:
        setting, config = _setting("zephyr-7b", "generate.decoder=sampled", "generate.temperature=1", *sets)
        return {line.stage: line for line in sheet.lines(setting, config, todo.everything(config, setting.data))}

    one, four = of(), of("generate.n=4")
    first = of("generate.n=4", "gather.pick=first")
    grouped = of("generate.n=4", "finetune.order=prompts")
    seconds = {name: line.seconds or 0.0 for name, line in one.items()}
    assert four["generate"].store == pytest.approx(4 * one["generate"].store)
    for stage in ("generate", "finetune", "gather"):
        assert four[stage].seconds == pytest.approx(4 * seconds[stage], rel=0.05), stage
    assert first["generate"].seconds == four["generate"].seconds and first["finetune"].seconds == seconds["finetune"]
    saved = (grouped["finetune"].seconds or 0.0) / (four["finetune"].seconds or 1.0)
    assert 0.3 < saved < 0.75, "eight pairs of history 2: of prompt and real answer an eighth is left"
    alone = [of("generate.n=4", "runtime.micro_tokens=256", f"finetune.order={by}") for by in ("pairs", "prompts")]
    assert alone[0]["finetune"].need.gpu < alone[1]["finetune"].need.gpu, "a group is never divided over passes"


def test_evaluates_pairs_of_a_row_share_their_prompt_and_real_answer() -> None:
    """Catches margins of four answers that cost as much as four pairs apart, or as much as one."""

    def margins(*sets: str) -> float:
        setting, config = _setting("zephyr-7b", "generate.decoder=sampled", "generate.temperature=1", *sets)
        with_, without = (
            sheet.lines(setting, config, todo.Todo(evaluate=1, opposed=opposed))[0].seconds or 0.0 for opposed in (1, 0)
        )
        return with_ - without

    assert 1.3 < margins("generate.n=4") / margins() < 3.2, "prompt, real and four answers, beside prompt and two"


def test_sheets_of_several_runs_are_summed_by_stage() -> None:
    """Catches a stage that is counted for one run only, memory that is added though runs follow each other, and a line
    under another stage's name."""
    setting, config = _setting("zephyr-7b")
    whole = sheet.lines(setting, config, todo.everything(config, setting.data))
    part = sheet.lines(setting, config, todo.Todo(finetune=[0], evaluate=1))
    both = {line.stage: line for line in sheet.together([part, whole])}
    assert list(both) == [line.stage for line in whole]
    first, second = ({line.stage: line for line in one} for one in (whole, part))
    for stage, line in both.items():
        own = [one[stage] for one in (first, second) if stage in one]
        assert line.steps == sum(one.steps for one in own) and line.store == sum(one.store for one in own)
        assert line.seconds == pytest.approx(sum(one.seconds or 0.0 for one in own))
        assert line.need.gpu == max(one.need.gpu for one in own) and line.gpus == max(one.gpus for one in own)
