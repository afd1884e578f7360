"""Weights as their difference to other weights: bit-exact, whatever they are; and a damaged delta is never taken."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.store import delta
from spin_core.store.digest import Damaged

WIDTHS = {"F32": 4, "BF16": 2, "U8": 1, "F64": 8}
TREE = "ab" * 32


def weights(
    path: Path, seed: int, count: int = 400_000, dtype: str = "BF16", moved: float = 0.0, tail: bytes = b""
) -> Path:
    """A safetensors file of random bits; `moved`: the part of its weights that are the next or the last number."""
    rng = np.random.default_rng(seed)
    width = WIDTHS[dtype]
    bits = (
        rng.integers(0, 2 ** (8 * width), count, np.uint64, endpoint=False)
        if width < 8
        else rng.integers(0, 2**63, count)
    )
    bits = bits.astype(f"<u{width}")
    if moved:
        at = np.random.default_rng(seed + 1).random(count) < moved
        bits[at] += np.random.default_rng(seed + 2).choice([1, -1], at.sum()).astype(f"<i{width}").view(f"<u{width}")
    data = bits.tobytes() + tail
    head = {"w": {"dtype": dtype, "shape": [count], "data_offsets": [0, count * width]}}
    if tail:
        head["rest"] = {"dtype": "U8", "shape": [len(tail)], "data_offsets": [count * width, len(data)]}
    line = json.dumps(head).encode()
    path.write_bytes(len(line).to_bytes(8, "little") + line + data)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("tail", [b"", b"odd"])
def test_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, tail: bytes) -> None:
    """Catches arithmetic that rounds, overflows or loses the bytes behind the last whole weight; and a last block that
    is shorter."""
    monkeypatch.setattr(delta, "BLOCK", 1 << 18)
    count = 1_100_000 // WIDTHS[dtype]
    base = weights(tmp_path / "base", 1, count, dtype, tail=tail)
    new = weights(tmp_path / "new", 1, count, dtype, moved=0.03, tail=tail and b"eve")
    head = delta.write(base, new, TREE, tmp_path / "delta")
    assert head == delta.Header(sha(new), sha(base), TREE, new.stat().st_size, WIDTHS[dtype])
    assert delta.header(tmp_path / "delta") == head
    assert delta.restore(base, [tmp_path / "delta"], tmp_path / "again") == sha(new)
    assert (tmp_path / "again").read_bytes() == new.read_bytes()
    assert (tmp_path / "delta").stat().st_size < 0.15 * new.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "base", "delta", "new"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.binary(min_size=1, max_size=200), st.data())
def test_any_bytes_come_back(width: int, old: bytes, data: st.DataObject) -> None:
    """Catches a difference that only works for the numbers that weights usually are: NaN, infinities, signs."""
    new = data.draw(st.binary(min_size=len(old), max_size=len(old)))
    assert delta._decode(old, delta._encode(old, new, width), width) == new


def test_several_lie_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """θ_3 from θ_0 and three deltas in one pass; in a wrong order, or with one left out, it is damage."""
    monkeypatch.setattr(delta, "BLOCK", 1 << 18)
    models = [weights(tmp_path / "θ_0", 1, 600_000)]
    for t in range(1, 4):
        raw = bytearray(models[-1].read_bytes())
        for at in random.Random(t).sample(range(1000, len(raw), 2), 3000):
            raw[at] ^= 1
        (tmp_path / f"θ_{t}").write_bytes(raw)
        models.append(tmp_path / f"θ_{t}")
        assert delta.write(models[t - 1], models[t], TREE, tmp_path / f"d{t}")
    made = [tmp_path / f"d{t}" for t in (1, 2, 3)]
    assert delta.restore(models[0], made, tmp_path / "out") == sha(models[3])
    with pytest.raises(Damaged, match="difference to another file"):
        delta.restore(models[0], [made[0], made[2]], tmp_path / "out2")
    assert delta.restore(models[0], made[1:], tmp_path / "out3") != sha(models[3])  # whoever asked compares it


@pytest.mark.parametrize(
    "case", ["other weights", "another size", "small", "no safetensors", "a header of another length"]
)
def test_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Catches a delta that is larger than half of the file, or of two files that have nothing to do with each other."""
    monkeypatch.setattr(delta, "BLOCK", 1 << 18)
    base, new = weights(tmp_path / "base", 1, 600_000), weights(tmp_path / "new", 1, 600_000, moved=0.03)
    if case == "other weights":
        new = weights(tmp_path / "new", 5, 600_000)
    elif case == "another size":
        new = weights(tmp_path / "new", 1, 600_001)
    elif case == "small":
        base, new = weights(tmp_path / "base", 1, 600), weights(tmp_path / "new", 1, 600, moved=0.03)
    elif case == "no safetensors":
        for path in (base, new):
            path.write_bytes(random.Random(1).randbytes(1_300_000))
    else:
        raw = new.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        head = raw[8 : 8 + length].rstrip() + b" " * 64
        new.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length : -(len(head) - length)])
    assert new.stat().st_size == base.stat().st_size or case == "another size"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert delta.write(base, new, TREE, tmp_path / "delta") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred random damages of a delta: each is Damaged, or gives other bytes, whose sum says so. Catches one that
    ends in another error, runs away with memory, or is taken for the file."""
    monkeypatch.setattr(delta, "BLOCK", 1 << 18)
    base, new = weights(tmp_path / "base", 1, 600_000), weights(tmp_path / "new", 1, 600_000, moved=0.03)
    delta.write(base, new, TREE, tmp_path / "delta")
    whole, rng, right = (tmp_path / "delta").read_bytes(), random.Random(3), sha(new)
    noticed = 0
    for number in range(200):
        raw, at = bytearray(whole), rng.randrange(len(whole))
        if number % 4 == 0:
            raw = raw[:at]
        elif number % 4 == 1:
            raw[at] ^= 1 << rng.randrange(8)
        elif number % 4 == 2:
            raw[at : at + 40] = rng.randbytes(40)
        else:
            raw[: rng.randrange(400)] = rng.randbytes(rng.randrange(400))
        path = tmp_path / f"bad{number}"
        path.write_bytes(raw)
        try:
            got = delta.restore(base, [path], tmp_path / f"out{number}")
        except Damaged as error:
            assert "Traceback" not in str(error)
            noticed += 1
        else:
            noticed += got != right
        (tmp_path / f"out{number}").unlink(missing_ok=True)
    assert noticed >= 180  # the rest are bits of the header's own sums: the bytes are right
