"""What a key must not depend on, and what it must; for any function that makes one (mutants too)."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from spin_core.errors import BadInput
from spin_core.store.keys import payload
from tests.faults.fault import Fault
from tests.faults.store.battery import ROOT, each

GOLDEN: dict[str, dict] = json.loads((ROOT / "tests/golden/keys.json").read_text(encoding="utf-8"))
Key = Callable[[dict], str]

CODE = """
import importlib, json, random, sys
module, name = sys.argv[2].split(":")
key_of = getattr(importlib.import_module(module), name)
from spin_core.errors import BadInput
from spin_core.store.keys import payload
rng = random.Random(sys.argv[3])
def turned(value):
    if isinstance(value, list):
        return [turned(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: turned(value[name]) for name in rng.sample(sorted(value), len(value))}
entries = json.load(open(sys.argv[1]))
keys = {name: key_of(turned(payload(**turned(e["arguments"])))) for name, e in entries.items()}
print(json.dumps(keys, sort_keys=True))
"""
LANGUAGES = ("C", "C.UTF-8", "tr_TR.UTF-8", "de_DE.ISO-8859-1", "ja_JP.UTF-8")
ZONES = ("UTC", "Asia/Tokyo", "America/Lima", "Pacific/Chatham")


def check_same_everywhere(
    tmp_path: Path, numbers: Iterable[int], fault: Fault | None = None, name: str = "spin_core.store.keys:key_of"
) -> None:
    """The golden keys, in processes that differ in all that must not matter."""
    processes = {number: _process(tmp_path, number, name) for number in numbers}

    def trial(number: int) -> None:
        out, problems = processes[number].communicate()
        assert processes[number].returncode == 0, problems[-500:]
        assert json.loads(out) == {name: entry["key"] for name, entry in GOLDEN.items()}, "another key elsewhere"

    each(fault, processes, trial)


def _process(tmp_path: Path, number: int, name: str) -> subprocess.Popen[str]:
    home = tmp_path / f"home {number}"
    home.mkdir()
    language = LANGUAGES[number % len(LANGUAGES)]
    env = {"PYTHONHASHSEED": str(number * 977), "LANG": language, "LC_ALL": language, "HOME": str(home)}
    env |= {"TZ": ZONES[number % len(ZONES)], "SPINLOOP_STORE": str(home), "USER": f"u{number}", "COLUMNS": str(number)}
    env |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONUTF8": str(number % 2)}
    command = [sys.executable, "-c", CODE, str(ROOT / "tests/golden/keys.json"), name, str(number)]
    return subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Colour(Enum):
    RED = "red"


REFUSED: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "a NaN deep inside": {"b": [{"c": math.nan}]},
    "half a surrogate pair": "\ud800",
    "a surrogate in a name": {"\udc00": 1},
    "NFD text": "e\u0301",
    "a name in NFD": {"e\u0301": 1},
    "an integer beyond 64 bits": 2**64,
    "a name that is a number": {1: 2},
    "a tuple": (1, 2),
    "a set": {1, 2},
    "bytes": b"x",
    "a path": ROOT,
    "an enum": Colour.RED,
    "a class": object,
    "an object": object(),
    "a function": len,
}


def check_refused(key_of: Key, fault: Fault | None = None) -> None:
    """What JSON cannot hold without loss has no key; it is refused with its place."""

    def trial(name: str) -> None:
        made = {"store": 1, "stage": "finetune", "version": 1, "config": {"beta": REFUSED[name]}, "inputs": {}}
        try:
            key_of(made)
        except BadInput as error:
            assert str(error).startswith("config.beta") and str(error).endswith("."), error
        else:
            raise AssertionError(f"{name} got a key")

    each(fault, REFUSED, trial)


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything in a payload that is neither a map nor a list."""
    if isinstance(value, dict):
        return [leaf for name in value for leaf in leaves(value[name], (*path, name))]
    if isinstance(value, list):
        return [leaf for i in range(len(value)) for leaf in leaves(value[i], (*path, i))]
    return [path]


def _another(value: Any, rng: random.Random) -> Any:
    """Another value, near the first one: where a mistake would not see the difference."""
    if isinstance(value, bool) or value is None:
        return rng.choice([str(value), int(bool(value)), [value]])
    if isinstance(value, int):
        return rng.choice([value + 1, -value - 1, float(value), str(value), [value]])
    if isinstance(value, float):
        return rng.choice([math.nextafter(value, 0.0 if value else 1.0), str(value), [value], -value or 1.0])
    at = rng.randrange(len(value) + 1)
    return rng.choice([value[:at] + rng.choice("0af x") + value[at:], [value], value + "\u200b"])


def check_sensitive(key_of: Key, fault: Fault | None = None, count: int = 500) -> None:
    """Any change of a random golden payload, in a value, a name or what is there, is another key."""

    def trial(number: int) -> None:
        rng = random.Random(f"payload {number}")
        made = payload(**GOLDEN[rng.choice(sorted(GOLDEN))]["arguments"])
        changed = copy.deepcopy(made)
        inner, path = changed, rng.choice(leaves(made))
        for step in path[:-1]:
            inner = inner[step]
        what = rng.choice(["value", "value", "name", "gone", "more"]) if isinstance(inner, dict) else "value"
        if what == "value":
            inner[path[-1]] = _another(inner[path[-1]], rng)
        elif what == "name":
            inner[f"{path[-1]}_"] = inner.pop(path[-1])
        elif what == "gone":
            del inner[path[-1]]
        else:
            inner["one_more"] = None
        assert changed != made or repr(changed) != repr(made)
        assert key_of(changed) != key_of(made), f"{what} at {path}: the same key"

    each(fault, range(fault.count if fault else count), trial)
