"""Where the sizes of a profile's model are read: its folder, the hub client's cache, or the list of known models.

Is not: a download. The hub is not called.
"""

from __future__ import annotations

from pathlib import Path

from spin_core.estimate.architecture import Architecture, of_folder, of_known
from spin_core.stages import demo_model


def sizes(path: str, revision: str, base_dir: Path) -> Architecture | str:
    """The sizes of `model.path`, or in one sentence why there are none."""
    if path == "builtin:tiny-llama":
        shape = demo_model.Config(seed=0)
        vocab = len(demo_model.SPECIAL) + len(demo_model.CHARACTERS)
        head = shape.hidden // shape.heads
        return Architecture(
            shape.layers, shape.hidden, shape.heads, shape.heads, head, 2 * shape.hidden, vocab, True, 4
        )
    folder = _folder(path, base_dir) or _cached(path, revision)
    if folder is not None:
        known = of_folder(folder)
        return f"No estimate: the model {path} {known}." if isinstance(known, str) else known
    return of_known(path) or (
        f"No estimate: the sizes of the model {path} are not known here; give the path of a local copy as model.path."
    )


def _folder(path: str, base_dir: Path) -> Path | None:
    try:
        places = (base_dir / Path(path).expanduser(), Path(path).expanduser())
        return next((place for place in places if (place / "config.json").is_file()), None)
    except (OSError, RuntimeError):
        return None


def _cached(path: str, revision: str) -> Path | None:
    """The folder in the hub client's cache that has the config.json of a hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(path, "config.json", revision=revision or None)
    except (HFValidationError, OSError):
        return None
    return Path(file).parent if isinstance(file, str) else None
