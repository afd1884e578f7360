"""Correction factors of a proof on a GPU: where they are read, what they change, and that without one nothing does."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan import costs, setting_of
from spin_core.config.profile import load_profile
from spin_core.errors import BadInput
from spin_core.estimate import measured, needs, sheet, todo
from spin_core.estimate.needs import CONTEXT, NEEDS, Setting

CARD, SMALL, LARGE = "l40s", 135_000_000, 7_000_000_000


@pytest.fixture
def corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as the proof writes it: two sizes on one card."""
    file = tmp_path / "measured.yaml"
    measured.write(measured.added(CARD, "2026-11-29", SMALL, {"finetune": (4.0, 1.5), "score": (2.0, 1.1)}), file)
    measured.write(measured.added(CARD, "2026-12-01", LARGE, {"finetune": (1.25, 0.9)}, file), file)
    monkeypatch.setattr(measured, "KNOWN", file)
    return file


def _setting(name: str = "zephyr-7b-lora", gpu: str = CARD) -> tuple[Setting, object]:
    config, base = load_profile(name)
    setting = setting_of(config, base, None, gpu, 1)
    assert isinstance(setting, Setting)
    return setting, config


def _sheet(gpu: str = CARD, name: str = "zephyr-7b-lora") -> dict[str, sheet.StageCost]:
    setting, config = _setting(name, gpu)
    return {line.stage: line for line in sheet.lines(setting, config, todo.everything(config, setting.data))}


def test_measured_stages_are_multiplied_and_named(corrected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a factor of another model's size, one for a stage or a card that was not measured, memory whose CUDA
    context is multiplied too, and a corrected sheet that does not say so."""
    after, other = _sheet(), _sheet("a6000")
    config, base = load_profile("zephyr-7b-lora")
    text = "\n".join(costs(config, base, None, None, CARD, 1).lines)
    assert "Corrected by a measurement on l40s, 2026-12-01 (7.00 billion weights): finetune." in text
    assert "Corrected by a measurement on l40s, 2026-11-29 (135 million weights): score." in text
    assert all(len(line) <= 100 for line in text.splitlines())
    monkeypatch.setattr(measured, "KNOWN", Path(measured.__file__).with_name("measured.yaml"))
    before = _sheet()
    assert after["finetune"].seconds == pytest.approx(1.25 * before["finetune"].seconds)
    assert after["score"].seconds == pytest.approx(2.0 * before["score"].seconds)
    assert after["finetune"].need.gpu - CONTEXT == pytest.approx(0.9 * (before["finetune"].need.gpu - CONTEXT))
    assert after["generate"] == before["generate"] and other == _sheet("a6000")
    assert "Corrected" not in "\n".join(costs(config, base, None, None, CARD, 1).lines)


def test_what_was_not_measured_is_not_corrected(corrected: Path) -> None:
    """Catches a factor of one process that is put on ZeRO's parts, and of transformers' sampling on vLLM's."""
    setting, config = _setting("zephyr-7b")
    assert config.runtime.compute.sharding == "zero3"
    assert needs.of("finetune", setting, config) == NEEDS["finetune"](setting, config)
    measured.write(measured.added(CARD, "2026-12-01", LARGE, {"generate": (3.0, 2.0)}), corrected)
    measured._corrections.cache_clear()
    setting, config = _setting()
    assert needs.correction_of("generate", setting, config)
    vllm = config.model_copy(update={"generate": config.generate.model_copy(update={"engine": "vllm"})})
    assert needs.correction_of("generate", setting, vllm) is None


def test_new_measurement_takes_the_place_of_the_old_one(corrected: Path) -> None:
    """Catches a file that grows at each proof, and one that forgets other cards and sizes."""
    measured.write(measured.added("h200", "2026-12-02", SMALL, {"score": (1.0, 1.0)}, corrected), corrected)
    again = measured.added(CARD, "2026-12-03", SMALL, {"score": (1.5, 1.0)}, corrected)
    assert [line["date"] for line in again[CARD]] == ["2026-12-01", "2026-12-03"] and list(again) == [CARD, "h200"]
    assert corrected.read_text().startswith("# What a proof")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "l40s: 3",
        "l40s: [{score: [1, 1]}]",
        "l40s: [{date: 2026-11-29, weights: 10, score: 2}]",
        "l40s: [{date: 2026-11-29, weights: 0, score: [1, 1]}]",
    ],
)
def test_file_of_another_form_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a plan that ends in a traceback, or is corrected by 0, where the file was edited by hand."""
    file = tmp_path / "measured.yaml"
    file.write_text(text)
    monkeypatch.setattr(measured, "KNOWN", file)
    with pytest.raises(BadInput, match=r"measured\.yaml: "):
        measured.nearest(CARD, "score", 10)
