"""Each scanner sees the bad file it is there for, and lets a good one pass: without this, the rules could pass by
seeing nothing."""

from __future__ import annotations

import pytest

from tests.architecture import scan


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import prefect.tasks", "prefect.tasks"),
        ("def f():\n    from prefect import flow", "prefect.flow"),
        ("from ..flows import spin", "flows.spin"),
        ("import importlib\nimportlib.import_module('flows.spin')", "flows.spin"),
        ("__import__('prefect')", "prefect"),
    ],
)
def test_walls_each_way_to_import_is_seen(source, seen):
    """Catches a scanner that sees top-level absolute imports only."""
    assert [
        name.split("imports ")[1] for name in scan.beyond_walls(source, "spin_core.x", None, {"prefect", "flows"})
    ] == [seen]


def test_walls_allow_list_refuses_what_is_not_on_it():
    """Catches an allow-list that lets any installed library through, or refuses the standard library."""
    source = "import json, numpy\nfrom spin_core import config"
    assert scan.beyond_walls(source, "tasks.x", {"spin_core"}, set()) == ["line 1: imports numpy"]


def test_imports_at_import_time_leave_out_functions_and_type_checking():
    """Catches a `top` that reports a lazy import as one that loads torch."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    source += "def f():\n    import datasets\nclass A:\n    import pyarrow\n"
    assert {name for _, name in scan.imports(source, "m", top=True)} == {"typing.TYPE_CHECKING", "pyarrow"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "import joblib.memory", "eval('1')", "exec('x')",
        "import yaml\nyaml.load(s)",
        "from yaml import load as parse\nparse(s)", "import torch as t\nt.load(f)", "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "f(**{'trust_remote_code': True})", "import subprocess\nsubprocess.run(c, shell=True)",
        "import os\nos.system(c)", "from os import system\nsystem(c)",
    ],
)  # fmt: skip
def test_banned_each_bad_line_is_seen(source):
    """Catches a ban that an alias, a `from` import or a keyword dictionary gets around."""
    assert scan.banned(source)


def test_banned_good_lines_pass():
    """Catches a ban on model.eval(), yaml.safe_load and trust_remote_code=False."""
    assert not scan.banned(
        "import yaml\nyaml.safe_load(s)\nmodel.eval()\nf(trust_remote_code=False, shell=False)\nre.compile('x').exec"
    )


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "from time import time as now\nnow()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime as d\nd.datetime.now()",
    ],
)
def test_clocks_each_way_is_seen(source):
    """Catches a scanner that an alias gets around."""
    assert scan.clocks(source)
    assert not scan.clocks("import time\ntime.perf_counter()")


@pytest.mark.parametrize(
    "source",
    [
        "open(p, 'w')", "open(p, mode='ab')", "open(p, how)", "p.open('x')", "p.open(mode='r+')",
        "import os\nos.rename(a, b)", "p.replace(b)",
        "p.write_text(s)", "p.unlink()", "import shutil\nshutil.rmtree(p)", "from shutil import rmtree\nrmtree(p)",
        "import os\nos.open(p, os.O_RDWR | os.O_CREAT)",
        "import tempfile\ntempfile.mkdtemp()", "Path(p).mkdir()", "(a / b).chmod(0o444)",
    ],
)  # fmt: skip
def test_mutations_each_way_is_seen(source):
    """Catches a write that goes around the one file where faults are injected."""
    assert scan.mutations(source)


def test_mutations_reading_and_fs_pass():
    """Catches a scanner that refuses reading, str.replace, or the seam itself."""
    source = "from spin_core.store import fs\nfrom spin_core.store.fs import unlink\n"
    source += "fs.unlink(p)\nunlink(p)\nfs.replace(a, b)\nimport os\nopen(p)\np.open('rb')\nopen(p, 'rb')\n"
    assert not scan.mutations(source + "s.replace('a', 'b')\nos.open(p, os.O_RDONLY)\ndataclasses.replace(r, a=1)\n")


@pytest.mark.parametrize(
    "source",
    [
        "open(p)", "open(p, 'w')", "p.open()", "p.open('a')", "p.open(mode='r')", "p.read_text()",
        "p.read_text(errors='replace')", "p.write_text(s)", "import os\nos.fdopen(fd, 'w')",
        "import subprocess\nsubprocess.run(c, text=True)",
    ],
)  # fmt: skip
def test_unencoded_each_way_is_seen(source):
    """Catches a scanner that knows `open` alone, or takes any keyword for the encoding."""
    assert scan.unencoded(source)


def test_unencoded_bytes_and_named_encodings_pass():
    """Catches a scanner that refuses bytes, descriptors, or an encoding that is said by place."""
    source = "import os\nos.open(p, os.O_RDONLY)\nopen(p, 'rb')\np.open('wb')\nos.fdopen(fd, 'wb')\n"
    source += "p.read_text('utf-8')\np.write_text(s, encoding='utf-8')\nopen(p, encoding='ascii')\n"
    assert not scan.unencoded(source + "run(c, encoding='utf-8')\nrun(c, text=False)\n")


def test_sizes_and_docstrings_are_seen():
    """Catches off-by-one limits and a docstring check that looks at the module alone."""
    assert scan.sizes("a = 1\n" * 5, 4, 9) == ["5 lines; at most 4"] and not scan.sizes("a = 1\n" * 4, 4, 9)
    assert scan.sizes("@d\ndef f():\n    a\n    b\n", 9, 2) == ["line 2: f has 3 lines; at most 2"] and not scan.sizes(
        "def f():\n    a\n", 9, 2
    )
    assert scan.undocumented("a = 1", False) and not scan.undocumented("", True)
    assert scan.undocumented('"""d"""\ndef f(): ...\nclass A: ...\ndef _g(): ...\n', True) == [
        "line 2: f has no docstring",
        "line 3: A has no docstring",
    ]
