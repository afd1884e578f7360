"""Opens a store by its name: a folder, or a URL of object storage. Every place that a person names a store comes here.

Not here: what either kind does. The modules for object storage are imported only where such a store is named.
"""

from __future__ import annotations

import os
from pathlib import Path

from spin_core.errors import BadInput
from spin_core.store.store import NAME, Store


def is_remote(where: str) -> bool:
    """Whether a store's name is a URL."""
    return "://" in where


def named(where: str) -> str:
    """A store's name as it means the same from every folder: an absolute path, or the URL."""
    return where if is_remote(where) else str(Path(where).expanduser().absolute())


def exists(where: str) -> bool:
    """Whether there is a store. Raises StoreError where a service does not answer, BadInput for a wrong URL."""
    if not is_remote(where):
        return (Path(where) / NAME).exists()
    from spin_core.store.s3.objects import Objects

    # Listed: of a bucket that is not there `head` says no more than of an object.
    return any(stat.key == "id" for stat in Objects(where, NAME).listed("id"))


def open_store(where: str, create: bool = True, read_only: bool = False, runs: bool = True) -> Store:
    """The store of this name, made if `create`. Of object storage: `read_only` writes nothing there, and fetches
    outputs when they are read and not when they are looked up, as $SPINLOOP_FETCH=used makes a run do. `runs`: bring
    `runs/` up to date. Raises StoreError, BadInput as `Store` and `RemoteStore`."""
    if not is_remote(where):
        return Store(Path(where), create)
    from spin_core.store.s3.remote import RemoteStore

    late = os.environ.get("SPINLOOP_FETCH", "")
    if late not in ("", "all", "used"):
        raise BadInput(f"SPINLOOP_FETCH={late}: give all (what is cached, when it is looked up) or used (when read).")
    return RemoteStore(where, create, read_only, late == "used", runs)
