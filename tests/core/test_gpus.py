"""Which GPUs a stage process sees."""

from __future__ import annotations

import pytest

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.runtime import gpus


def _groups(workers: int, each: int, count: int, device: str = "auto") -> list[str]:
    runtime = Runtime(workers=workers, tensor_parallel=each, device=device)
    return gpus.groups(runtime, [str(i) for i in range(count)])


def test_workers_share_no_gpu_while_there_are_enough() -> None:
    """Catches two workers on one GPU, a GPU of eight that nobody uses, and a group that mixes two workers' GPUs."""
    assert _groups(4, 2, 8) == ["0,1", "2,3", "4,5", "6,7"]
    assert _groups(8, 1, 8) == [str(i) for i in range(8)]
    assert _groups(1, 4, 4) == ["0,1,2,3"]


def test_too_few_gpus_are_shared_or_refused() -> None:
    """Catches a worker that is left without a GPU, and an engine over more GPUs than there are."""
    assert _groups(3, 1, 2) == ["0", "1", "0"]
    with pytest.raises(BadInput, match="tensor_parallel is 4, and 2 GPUs are visible"):
        _groups(1, 4, 2)


def test_nothing_is_divided_where_nothing_need_be() -> None:
    """Catches a single process that sees one GPU of four, a device that the user chose and that is renumbered, and an
    empty list that hides all GPUs."""
    assert _groups(1, 1, 4) == _groups(2, 1, 4, "cuda:1") == _groups(2, 1, 4, "cpu") == _groups(4, 1, 0) == []


def test_gpus_are_those_that_the_environment_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches GPUs of other people's jobs taken on a shared machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    assert gpus.visible() == ["3", "GPU-5a"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpus.visible() == []


@pytest.mark.parametrize(("settings", "count"), [({"workers": 2}, 1), ({"workers": 2, "tensor_parallel": 2}, 3)])
def test_two_engines_on_one_gpu_are_refused_beforehand(settings, count) -> None:
    """Catches a second vLLM that is started on a GPU whose memory the first one has."""
    with pytest.raises(BadInput, match="GPUs, and"):
        gpus.check_unshared(Runtime(**settings), count)
    gpus.check_unshared(Runtime(**settings), 4)
    gpus.check_unshared(Runtime(**settings), 0)


def test_processes_that_share_a_model_hold_all_their_gpus(monkeypatch) -> None:
    """Catches a bill of one GPU for a stage of sixteen, and processes that a node has no GPUs for."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    gpus._visible.cache_clear()
    runtime = Runtime(compute={"processes": 8, "nodes": 2})  # type: ignore[arg-type]
    assert gpus.held("finetune", runtime, together=True)["gpus"] == 16
    assert gpus.groups(runtime, gpus.visible()) == []
    with pytest.raises(BadInput, match=r"runtime\.compute\.processes is 8, and 4 GPUs are visible"):
        gpus.groups(runtime, ["0", "1", "2", "3"])
    gpus._visible.cache_clear()
