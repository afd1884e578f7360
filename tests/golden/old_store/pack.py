"""Packs a store into store.tar.xz: `python tests/golden/old_store/pack.py STORE`. Same store, same bytes."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

KEPT = ("records", "trees")


def pack(store: Path, archive: Path) -> None:
    """Records and trees only: the rest is of one machine or one moment. No times, users or modes."""
    with tarfile.open(archive, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as packed:
        for path in sorted(store.rglob("*")):
            place = path.relative_to(store)
            if path.is_file() and place.parts[1] in KEPT:
                entry = tarfile.TarInfo(str(place))
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    packed.addfile(entry, file)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(__file__).with_name("store.tar.xz"))
