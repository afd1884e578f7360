"""A file of weights as its difference to the file of the model that it was trained from: bit-exact, and small.

After 299 real steps at the paper's learning rate 3.0 % of the bfloat16 weights of θ_{t+1} are others than θ_t's, and
the difference takes 3.5 % of the file (tests/benchmarks/bench_delta.md). Weights are read as integers of their width:
the next number of the same sign is ±1 there. Their differences, the bytes of each apart, go through zstd block by
block.

A delta is a line of JSON (`Header`), then of each block 4 bytes (how many follow, little-endian) and a zstd frame.
Not here: where deltas lie, which model is the base, and whether what was restored is right; whoever restores hashes it.
Nothing is rounded: a base or a file that is no model's gives a large delta, which is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from spin_core.store import fs
from spin_core.store.digest import Damaged, open_regular
from spin_core.store.keys import DIGEST

BLOCK = 16 << 20
"""Bytes of the file in each frame. A part of the format."""
SMALLEST = 1 << 20
"""Bytes of a file from which a delta is worth its bookkeeping."""
MOST = 0.5
"""Of the file's size: a delta that is larger is not kept."""
DEEPEST = 8
"""How many deltas may lie between a file and a whole one: each is read to restore it."""
AT_ONCE = 4  # blocks, of which each is in memory some ten times: 700 MB
TRIED = 4  # blocks after which a delta that grows too large is given up
LEVEL = 3
LONGEST_LINE = 1 << 10
SUFFIX = ".safetensors"
DTYPES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Header:
    """`new`, `base`: sha256 of the file and of the one that it is the difference to; `size`: bytes of either;
    `width`: bytes of the integers; `tree`: the output that the base is in, under the same name."""

    new: str
    base: str
    tree: str
    size: int
    width: int
    format: int = 1


def write(
    base: Path, new: Path, tree: str, target: Path, advance: Callable[[int], None] = lambda _: None
) -> Header | None:
    """Writes the delta of `new` to `base` as the new file `target`, durable on return, each block decoded again and
    compared; None, and no file, where the two are no weights of one size or the delta is over MOST of it. The header
    has the sha256 of what was read just now: compare them with what is expected. `advance` gets bytes done.

    Raises Damaged where a file is missing, OSError.
    """
    size = os.lstat(new).st_size
    width = _width(new) if size >= SMALLEST and size == os.lstat(base).st_size else 0
    if not width:
        return None
    frames = target.with_name(f"{target.name}.frames")
    kept = False
    try:
        with fs.new_file(frames) as out:
            shas = _frames(
                base, new, width, lambda data, at: fs.write_at(out, frames, data, at), int(size * MOST), advance
            )
        if shas is None:
            return None
        header = Header(shas[1], shas[0], tree, size, width)
        line = json.dumps(asdict(header)).encode() + b"\n"
        with fs.new_file(target) as fd, open(frames, "rb") as stream:
            fs.write_at(fd, target, line, 0)
            at = len(line)
            while piece := stream.read(BLOCK):
                fs.write_at(fd, target, piece, at)
                at += len(piece)
        kept = True
        return header
    finally:
        fs.unlink(frames)
        if not kept:
            fs.unlink(target)


def _frames(
    base: Path, new: Path, width: int, put: Callable[[bytes, int], None], most: int, advance: Callable[[int], None]
) -> tuple[str, str] | None:
    """Writes the frames; the sha256 of base and new, None where they would be more than `most` bytes."""
    shas, at, read = (hashlib.sha256(), hashlib.sha256()), 0, 0
    with open(open_regular(base), "rb") as before, open(open_regular(new), "rb") as after, _threads() as threads:
        pairs = zip(_blocks(before), _blocks(after), strict=True)
        while few := list(islice(pairs, AT_ONCE)):
            frames = threads.map(lambda pair: _checked_frame(pair[0], pair[1], width), few)
            for sha, blocks in zip(shas, zip(*few, strict=True), strict=True):
                for block in blocks:
                    sha.update(block)
            for (_, now), frame in zip(few, frames, strict=True):
                if not frame:
                    return None
                put(len(frame).to_bytes(4, "little") + frame, at)
                at, read = at + 4 + len(frame), read + len(now)
                advance(len(now))
            if at > most or (read >= TRIED * BLOCK and at > read * MOST):
                return None
    return shas[0].hexdigest(), shas[1].hexdigest()


def header(path: Path) -> Header:
    """Of a delta. Raises Damaged where it is none, OSError."""
    with open(open_regular(path), "rb") as stream:
        return _header(stream, path)


def restore(
    base: Path, deltas: Sequence[Path], target: Path | None, advance: Callable[[int], None] = lambda _: None
) -> str:
    """Writes the file that `deltas` (each the difference to the one before; the first to `base`) lead to as the new
    file `target` (None: nowhere), durable on return; its sha256, which the caller compares.

    Raises Damaged for a delta that cannot be read, or is to another file than the one before it; OSError.
    """
    sha = hashlib.sha256()
    with ExitStack() as opened:
        before = opened.enter_context(open(open_regular(base), "rb"))
        streams = [opened.enter_context(open(open_regular(path), "rb")) for path in deltas]
        headers = [_header(stream, path) for stream, path in zip(streams, deltas, strict=True)]
        for one, following in pairwise(headers):
            if one.new != following.base:
                raise Damaged(f"{deltas[headers.index(following)]}: the difference to another file.")
        if any(one.size != os.fstat(before.fileno()).st_size for one in headers):
            raise Damaged(f"{base}: has another size than the file that the delta was made from.")
        fd, at = opened.enter_context(fs.new_file(target)) if target else -1, 0
        blocks, threads = _blocks(before), opened.enter_context(_threads())

        def restored(work: tuple[bytes, list[bytes]]) -> bytes:
            block, frames = work
            for frame, one, path in zip(frames, headers, deltas, strict=True):
                block = _decode(block, frame, one.width, path)
            return block

        while few := list(islice(blocks, AT_ONCE)):
            works = [(block, [_frame(*of) for of in zip(streams, deltas, strict=True)]) for block in few]
            for block in threads.map(restored, works):
                sha.update(block)
                if target:
                    fs.write_at(fd, target, block, at)
                at += len(block)
                advance(len(block))
    return sha.hexdigest()


def _threads() -> ThreadPoolExecutor:
    """numpy and zstd release the interpreter, so blocks go side by side. One for each file: a fork would have it
    without its threads."""
    return ThreadPoolExecutor(AT_ONCE, "spinloop-delta")


def _checked_frame(old: bytes, new: bytes, width: int) -> bytes:
    """The frame of a block; empty where it does not give it back, by a fault of a library: the file stays as it is."""
    frame = _encode(old, new, width)
    return frame if _decode(old, frame, width) == new else b""


def _encode(old: bytes, new: bytes, width: int) -> bytes:
    import numpy as np
    import pyarrow as pa

    whole = len(new) // width * width
    a, b = (np.frombuffer(data, f"<u{width}", whole // width) for data in (old, new))
    difference = (b - a).view(f"<i{width}")
    # 0, −1, 1, −2 … as 0, 1, 2, 3 …: small in both directions, without a sign that fills the high bytes.
    small = ((difference << 1) ^ (difference >> (8 * width - 1))).view(np.uint8)
    apart = np.ascontiguousarray(small.reshape(-1, width).T).tobytes()
    frame: bytes = pa.Codec("zstd", compression_level=LEVEL).compress(apart + new[whole:], asbytes=True)
    return frame


def _decode(old: bytes, frame: bytes, width: int, path: Path = Path()) -> bytes:
    import numpy as np
    import pyarrow as pa

    whole = len(old) // width * width
    try:
        raw: bytes = pa.Codec("zstd").decompress(frame, decompressed_size=len(old), asbytes=True)
    except (OSError, ValueError) as error:  # what pyarrow raises of a frame that is none
        raise Damaged(f"{path}: a block of this delta cannot be read.") from error
    if len(raw) != len(old):
        raise Damaged(f"{path}: a block of this delta has another size.")
    apart = np.frombuffer(raw, np.uint8, whole).reshape(width, -1).T
    small = np.ascontiguousarray(apart).view(f"<u{width}").ravel()
    difference = (small >> 1) ^ (np.zeros_like(small) - (small & 1))
    new: bytes = (np.frombuffer(old, f"<u{width}", whole // width) + difference).tobytes()
    return new + raw[whole:]


def _width(path: Path) -> int:
    """Bytes of most of a safetensors file's weights; 0 for another file."""
    with open(open_regular(path), "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= 100_000_000:  # the format's own limit
            return 0
        try:
            tensors: dict[str, Any] = json.loads(stream.read(length))
            counts = Counter[int]()
            for name, tensor in tensors.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    counts[DTYPES.get(tensor["dtype"], 1)] += end - begin
            return max(counts, key=lambda width: (counts[width], width)) if counts else 0
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return 0


def _header(stream: BinaryIO, path: Path) -> Header:
    line = stream.readline(LONGEST_LINE)
    try:
        made = Header(**json.loads(line))
        sums = all(DIGEST.fullmatch(one) for one in (made.new, made.base, made.tree))
        if line.endswith(b"\n") and sums and made.format == 1 and made.width in (1, 2, 4, 8) and made.size >= 0:
            return made
    except (ValueError, TypeError, RecursionError):
        pass
    raise Damaged(f"{path}: this is no delta of ours.")


def _frame(stream: BinaryIO, path: Path) -> bytes:
    length = int.from_bytes(stream.read(4), "little")
    if length > 2 * BLOCK:
        raise Damaged(f"{path}: a block of this delta cannot be read.")
    return stream.read(length)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block
