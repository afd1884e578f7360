"""A place for a store, and a store in it: as the battery has them."""

from tests.faults.store.conftest import place, store

__all__ = ["place", "store"]
