"""Rows a second and peak memory of reading a dataset: `python -m tests.benchmarks.bench_readers [--old CHECKOUT]`.

10⁴ to 10⁶ synthetic rows as one file and as a folder, read by this checkout, by another one (`--old`), and by
`datasets.load_dataset(streaming=True)`, each in a process of its own. Seconds are processor seconds from the first
import to the last row, those of child processes among them, so that a busy machine tells little; peak is the largest
resident size (VmHWM) of the process and of its largest child. Results go to bench_readers.json, and as a table to
standard output (bench_readers.md has those of the machine that it names).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ROWS = (10_000, 100_000, 1_000_000)
KINDS = ("jsonl", "parquet", "jsonl.gz", "csv", "folder of jsonl", "folder of parquet")
OLD = ("jsonl", "parquet", "folder of jsonl", "folder of parquet")
READ = """
import json, os, resource, sys
from pathlib import Path
from spin_core.data.readers import read
rows = sum(1 for _ in read(Path(sys.argv[1]), "train"))
if "spin_core.data.choice" in sys.modules:  # waited for, so that its memory counts
    sys.modules["spin_core.data.choice"]._child.end()
"""
STREAM = """
import json, os, resource, sys
import datasets
place = sys.argv[1]
kind = {"jsonl": "json", "gz": "json"}.get(place.rpartition(".")[2], place.rpartition(".")[2])
made = (
    datasets.load_dataset(kind, data_files=place, split="train", streaming=True)
    if "." in place.rpartition("/")[2]
    else datasets.load_dataset(place, split="train", streaming=True)
)
rows = sum(1 for _ in made)
"""
END = """
seconds = sum(os.times()[:4])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"rows": rows, "seconds": round(seconds, 2), "here": int(peak) >> 10, "child": child >> 10}))
"""


def main() -> None:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--old", type=Path, help="a checkout whose readers are measured too")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--streamed", action=argparse.BooleanOptionalAction, default=True, help="`datasets` too")
    parser.add_argument("--folder", type=Path, help="where the data goes (4 GB for a million rows)")
    args = parser.parse_args()
    file = HERE / "bench_readers.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for count in args.rows:
        with tempfile.TemporaryDirectory(prefix="spinloop-readers-", dir=args.folder) as folder:
            places = write(Path(folder), count)
            for kind in args.kinds:
                ways = {"new": (READ, ROOT)} | ({"datasets": (STREAM, ROOT)} if args.streamed else {})
                if args.old and kind in OLD:
                    ways["old"] = (READ, args.old)
                for way, (code, checkout) in ways.items():
                    made = measured(code, places[kind], checkout)
                    assert made["rows"] == count, (kind, way, made)
                    results.setdefault(kind, {}).setdefault(str(count), {})[way] = made
                    file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def write(folder: Path, count: int) -> dict[str, Path]:
    """The same rows in every kind; about 800 bytes each."""
    words = [f"word{n * 7919 % 9973}" for n in range(10_000)]
    shown = {"jsonl": folder / "a.jsonl", "parquet": folder / "a.parquet", "csv": folder / "a.csv"}
    shown["jsonl.gz"] = folder / "b.jsonl.gz"
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with (
        shown["jsonl"].open("w") as lines,
        pa.CompressedOutputStream(pa.OSFile(str(shown["jsonl.gz"]), "wb"), "gzip") as packed,
        pq.ParquetWriter(shown["parquet"], schema) as parquet,
        pyarrow.csv.CSVWriter(str(shown["csv"]), schema) as csv,
    ):
        for start in range(0, count, 10_000):
            rows = [
                {
                    "prompt": f"{n} " + " ".join(words[n % 9_900 : n % 9_900 + 30]),
                    "response": " ".join(words[n * 31 % 9_900 : n * 31 % 9_900 + 60]),
                }
                for n in range(start, min(count, start + 10_000))
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            lines.write(text)
            packed.write(text.encode())
            batch = pa.Table.from_pylist(rows, schema)
            parquet.write_table(batch)
            csv.write_table(batch)
    for kind in ("jsonl", "parquet"):
        inside = folder / f"folder-{kind}"
        inside.mkdir()
        (inside / f"train.{kind}").hardlink_to(shown[kind])
        shown[f"folder of {kind}"] = inside
    return shown


def measured(code: str, place: Path, checkout: Path) -> dict[str, float]:
    """What one process says of itself."""
    home = {"HF_HOME": str(place.parent / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    ran = subprocess.run(
        [sys.executable, "-c", code + END, str(place)],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=os.environ | home,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    made: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return made


def table(results: dict) -> str:
    """Rows a processor second (seconds), and MiB of the process + MiB of its decoder."""
    lines = ["| read | rows | old | new | `datasets`, streamed |", "|---|---:|---:|---:|---:|"]
    for kind, counts in results.items():
        for count, ways in counts.items():
            cells = [_cell(ways.get(way)) for way in ("old", "new", "datasets")]
            lines.append(f"| {kind} | {int(count):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(made: dict | None) -> str:
    if made is None:
        return "–"
    return f"{made['rows'] / made['seconds']:,.0f}/s ({made['seconds']:.1f} s), {made['here']} + {made['child']} MiB"


if __name__ == "__main__":
    main()
