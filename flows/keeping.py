"""`spinloop store gc --policy` and the deployment gc/gc: a store cleared by its policy (spin_core/store/keep.py)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spin_core.analysis.format import bytes_text, plural
from spin_core.config.yaml_reader import read
from spin_core.errors import BadInput
from spin_core.report.stored_run import executions
from spin_core.store import deltas, fs, keep, roots, runs
from spin_core.store.digest import children
from spin_core.store.gc import GcResult, gc
from spin_core.store.pack import PackResult, pack
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3 import verify as remote_verify
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.store import Store
from spin_core.store.usage import outputs


@dataclass(frozen=True)
class Cleared:
    """What was given up, removed and packed (None where that was not asked for, on S3, while runs use the store, and of
    a dry run, which does not know what would stay)."""

    decision: keep.Decision
    result: GcResult
    packed: PackResult | None

    def lines(self, dry_run: bool) -> list[str]:
        """A sentence for each run that is given up, and the sums."""
        would = "would be " if dry_run else ""
        lines = [f"{run}: {would}given up ({why}); its best model stays." for run, why in self.decision.forget.items()]
        if unknown := self.decision.unknown:
            lines.append(f"{plural(len(unknown), 'run')} of unknown age stay: {', '.join(unknown[:5])}.")
        done, stay = "would be removed" if dry_run else "removed", bytes_text(self.decision.size)
        lines.append(
            f"{plural(self.result.records, 'record')} and {plural(self.result.trees, 'tree')} {done}: "
            f"{bytes_text(self.result.bytes)}; the outputs that stay take {stay}."
        )
        if self.result.in_use:
            lines.append(waiting_text(self.result))
        if self.packed:
            before, after = bytes_text(self.packed.before), bytes_text(self.packed.after)
            lines.append(f"{plural(self.packed.models, 'model')} packed: {before} of weights take {after}.")
        return lines


def waiting_text(result: GcResult) -> str:
    """What a gc of a store in use left for a later one."""
    others = "Temporary and scratch folders and the quarantine wait for a gc between runs."
    if not result.waiting:
        return f"Runs use the store. {others}"
    trees, size = plural(result.waiting, "tree"), bytes_text(result.waiting_bytes)
    return (
        f"Runs use the store: {trees} that nobody needs, {size}, go with a later gc, when the runs of now have ended; "
        f"what runs that begin later look up of them stays. {others}"
    )


def policy_of(store: Store) -> dict[str, Any]:
    """What store.yaml says, as plain data; nothing where there is none. Raises BadInput."""
    if isinstance(store, RemoteStore):
        data = store.objects.get(keep.FILE)
    else:
        with fs.boundary(file := store.root / keep.FILE):
            data = file.read_bytes() if file.exists() else None
    made = read(data, keep.FILE) if data is not None else {}
    keep.parse(made or {}, keep.FILE)
    return dict(made or {})


def write_policy(store: Store, data: dict[str, Any]) -> None:
    """Puts a policy into the store. Raises BadInput for a wrong one, StoreError."""
    keep.parse(data, "policy")
    text = keep.encoded(data)
    if isinstance(store, RemoteStore):
        store.objects.put(keep.FILE, text)
        return
    with fs.boundary(store.root), store.using():
        runs.replace_file(store.root, store.root / keep.FILE, text)


def pinned(store: Store) -> list[str]:
    """The runs that are pinned, by name."""
    if isinstance(store, RemoteStore):
        return [run for run, view in _views(store).items() if keep.PINNED in view.files]
    return [folder.name for folder in children(store.root / "runs") if (folder / keep.PINNED).is_file()]


def clear(
    store: Store,
    policy: keep.Policy,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Cleared:
    """Gives up the runs that the policy says, removes what then nobody needs, and packs where it says so. Raises
    BadInput where more must stay than the policy allows, StoreError as gc does."""
    there = _there(store)
    began = {one.run: one.began for one in executions(store)}  # the oldest first, so that the last one stays
    records, pins = list(store.records()), pinned(store)

    def needed(forget: Collection[str]) -> set[str]:
        stay = roots.needed(store.root, records, there, None, (), forget, pins)
        return stay if isinstance(store, RemoteStore) else deltas.with_bases(store.root, stay)

    held = remote_verify.outputs(store) if isinstance(store, RemoteStore) else outputs(store)
    decision = keep.decide(policy, there, began, pins, held, needed, now or datetime.now(UTC))
    forget = list(decision.forget)
    if isinstance(store, RemoteStore):
        done = remote_gc.gc(store, dry_run=dry_run, forget=forget, while_used=policy.while_used)
        return Cleared(decision, done, None)
    result = gc(store, dry_run=dry_run, forget=forget, while_used=policy.while_used)
    packs = policy.pack and not dry_run and not result.in_use
    return Cleared(decision, result, pack(store) if packs else None)


def _there(store: Store) -> dict[str, runs.Pointer]:
    """The runs of the store; of one on S3 the service's, and not those that only a cache has."""
    if isinstance(store, RemoteStore):
        return {run: (view.links, view.order) for run, view in _views(store).items()}
    return {folder.name: runs.pointer(folder) for folder in children(store.root / "runs") if folder.is_dir()}


def _views(store: RemoteStore) -> dict[str, remote_runs.View]:
    return remote_runs.read(store.objects, store.objects.listed(remote_runs.FOLDER))[0]


def find_run(store: Store, name: str) -> str:
    """The name of a run that is there. Raises BadInput."""
    there = _there(store)
    if name not in there:
        raise BadInput(f"{name}: there is no such run; runs are {', '.join(sorted(there)) or 'none'}.")
    return name
