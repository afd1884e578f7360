"""Hostile models (S3, S4) and unpickling (S2): refused by name and content before anything of them is opened or run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
from tests.faults.fault import Fault

ROOT = Path(__file__).resolve().parents[2]
S3 = Fault(
    "S3", "a model whose weights are, or have beside them, .bin/.pt/.ckpt pickles; weights outside of its folder"
)
S4 = Fault(
    "S4", "a model that names code: auto_map, nested, custom_generate, a kernel of the hub; no prompt, no marker"
)


class Evil:
    """Unpickled, it makes the file that its environment names."""

    def __reduce__(self):
        return os.mkdir, (os.environ["SPINLOOP_TEST_MARKER"],)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    from spin_core.job import Job
    from spin_core.stages import demo_model

    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=0), Job(out=out, scratch=out))
    return out


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPINLOOP_TEST_MARKER", str(tmp_path / "marker"))
    return tmp_path / "marker"


def _torch_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    return held.getvalue()


def _instead(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(_torch_zip())

    return spoil


def _weights(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(data()) and None


def _index(names: list[str]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
        shutil.copy(folder / "model.safetensors", folder / "model-1.safetensors")
        (folder / "model.safetensors").unlink()
        content = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def _setting(name: str, **more) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**content, **more}))
        for module in ("evil.py", "modeling_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
            (folder / module).parent.mkdir(exist_ok=True)
            (folder / module).write_text("import os\nos.mkdir(os.environ['SPINLOOP_TEST_MARKER'])\n")

    return spoil


AUTO = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}
PICKLED: dict[str, tuple[Callable[[Path], None], str]] = {
    **{name: (_instead(name), "pickled")
       for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "training_args.bin", "optimizer.pt")},
    "pickle named safetensors": (_weights(lambda: pickle.dumps(Evil())), "does not load"),
    "torch zip named safetensors": (_weights(_torch_zip), "does not load"),
    "cut safetensors": (_weights(lambda: b"\x08\0\0\0\0\0\0\0{}"), "does not load"),
    "header of 1 TiB": (_weights(lambda: (1 << 40).to_bytes(8, "little") + b"{}"), "does not load"),
    "index names a pickle": (_index(["pytorch_model.bin"]), "no .safetensors file of this folder"),
    "index names ../": (_index(["../outside.safetensors"]), "no .safetensors file of this folder"),
    "index names /": (_index(["/etc/passwd"]), "no .safetensors file of this folder"),
    "index names a sub-folder": (_index(["x/model-1.safetensors"]), "no .safetensors file of this folder"),
}  # fmt: skip
CODE: dict[str, tuple[Callable[[Path], None], str]] = {
    "config": (_setting("config.json", auto_map=AUTO), "auto_map"),
    "config, empty": (_setting("config.json", auto_map={}), "auto_map"),
    "config, of a repository": (_setting("config.json", auto_map={"AutoConfig": "org/repo--evil.C"}), "auto_map"),
    "config, nested": (_setting("config.json", text_config={"auto_map": AUTO}), "auto_map"),
    "tokenizer": (_setting("tokenizer_config.json", auto_map=AUTO), "auto_map"),
    "generation": (_setting("generation_config.json", custom_generate="evil/repo"), "custom_generate"),
    "kernel of the hub": (_setting("config.json", attn_implementation="evil/kernel"), "attn_implementation"),
    "kernel of the hub, inner name": (_setting("config.json", _attn_implementation="evil/kernel:f"), "_attn_impl"),
    "kernel of the hub, by part": (_setting("config.json", attn_implementation={"text_config": "e/k"}), "attn_impl"),
    "kernel of experts": (_setting("config.json", experts_implementation="evil/kernel"), "experts_impl"),
}
LOAD = """
import os, sys
from pathlib import Path
import torch
from spin_core.modeling.chat import ChatSection
from spin_core.errors import BadInput
from spin_core.modeling.loading import load_chat, load_model
try:
    load_chat(Path(sys.argv[1]), ChatSection())
    load_model(Path(sys.argv[1]), torch.device("cpu"))
    print("loaded")
except BadInput as error:
    print(error)
"""


def _refusal(folder: Path) -> str:
    """What `resolve` says, or, where it takes the files, what loading them says."""
    try:
        resolve(str(folder), "model", "", Path("/"))
    except BadInput as error:
        return str(error)
    from spin_core.config.chat import ChatSection
    from spin_core.modeling.loading import load_chat, load_model

    with pytest.raises(BadInput) as raised:
        load_chat(folder, ChatSection())
        load_model(folder, "cpu")
    return str(raised.value)


@pytest.mark.parametrize(("fault", "cases"), [(S3, PICKLED), (S4, CODE)], ids=["pickles", "code"])
def test_hostile_models_are_refused_and_run_nothing(good, tmp_path, marker, monkeypatch, fault, cases):
    """Catches a loader that unpickles, imports a model's Python, fetches a kernel, reads beside the model's folder, or
    prompts on standard input whether it may."""
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("it prompts"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def trial(name: str) -> None:
        spoil, message = cases[name]
        folder = tmp_path / "m" / name.replace(" ", "-").replace("/", "_")
        shutil.copytree(good, folder)
        spoil(folder)
        sentence = _refusal(folder)
        assert message in sentence and str(folder) in sentence and sentence.isprintable(), sentence
        assert not marker.exists()

    fault.each(cases, trial)


def test_pickles_beside_good_weights_are_never_opened(good, tmp_path, marker):
    """Catches a planted training_args.bin, optimizer state or vocabulary that a library picks up by its name."""
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    planted = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "vocab.bin",
               "tokenizer.pkl", "vocab.pkl", "corpus.bin", "adapter_model.bin", "model.ckpt"]  # fmt: skip
    for name in planted:
        (folder / name).write_bytes(_torch_zip())
    (folder / "sitecustomize.py").write_text("import os\nos.mkdir(os.environ['SPINLOOP_TEST_MARKER'])\n")
    assert resolve(str(folder), "model", "", Path("/")).digest == resolve(str(good), "model", "", Path("/")).digest
    ran = subprocess.run(
        [sys.executable, "-P", "-c", AUDIT + LOAD, str(folder)], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, check=False, timeout=200,
    )  # fmt: skip
    assert ran.stdout.strip() == "loaded", ran.stdout + ran.stderr
    assert not marker.exists()


AUDIT = """
import sys
def _hook(event, args):
    if event == "pickle.find_class":
        frame, inside = sys._getframe(), False
        while frame:
            inside = inside or frame.f_code.co_filename.endswith("_weights_only_unpickler.py")
            frame = frame.f_back
        if not inside:
            raise SystemExit(f"unpickled {args[0]}.{args[1]}")
    if event == "open" and str(args[0]).endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
        raise SystemExit(f"opened {args[0]}")
sys.addaudithook(_hook)
"""


def test_unpickling_is_seen_by_the_hook(tmp_path):
    """Catches a hook that sees nothing."""
    code = (
        AUDIT + "import pickle, collections\npickle.loads(pickle.dumps(collections.OrderedDict()))\nprint('missed')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode and "unpickled collections.OrderedDict" in ran.stderr and "missed" not in ran.stdout
