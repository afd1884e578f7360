"""What gc must keep, and whether what it was shown of a store can be all that there is. For folders and for S3.

A listing can lie: a disk that is not mounted, a page of a proxy. What is there and is needed by nothing that was listed
is removed, so gc believes a listing only where nothing else in the store speaks against it, writes down what it will
remove (LIST) before it removes the first of it, and removes only what it has found unneeded twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from spin_core.errors import BadInput, StoreError
from spin_core.store.keys import input_digests
from spin_core.store.record import Record
from spin_core.store.runs import BEST, Pointer

LIST = "gc.json"
"""What the last gc removed or was about to remove, by its place in the store; `finished`: whether all of it is gone."""


def needed(
    where: object,
    records: list[Record],
    there: Mapping[str, Pointer],
    keep_runs: int | None,
    keep: Collection[str],
    forget: Collection[str] | None = None,
    pinned: Collection[str] = (),
) -> set[str]:
    """Digests that stay of those that `records` name: all; with `keep_runs`, `keep` or `forget` (every run but these),
    those that the runs to be kept of `there` and the pinned ones lead to, what these were made from, and the best model
    of every run.

    Raises BadInput for a number of runs below 0, and for one to be kept that is none of `there`; StoreError where runs
    are to be kept, and there is none although there are records.
    """
    if keep_runs is None and not keep and forget is None:
        return {record.digest for record in records}
    if keep_runs is not None and keep_runs < 0:
        raise BadInput(f"{keep_runs} runs cannot be kept; give the number of runs, from 0.")
    for name in keep:
        if name not in there:
            raise BadInput(f"{name}: there is no such run to keep; runs are {', '.join(sorted(there)) or 'none'}.")
    if records and not there:
        raise StoreError(
            f"{where}: runs/ shows no run, so none of {len(records)} records would be kept; check that all of the "
            "store is there, and delete it by hand if nothing of it is wanted."
        )
    last = sorted(there, key=lambda name: (there[name][1], name), reverse=True)[: keep_runs or 0]
    named = {*last, *keep} if forget is None else there.keys() - set(forget)
    in_full = {digest for name in {*named, *pinned} for digest in there[name][0].values()}
    return _made_from(in_full, records) | {digest for links, _ in there.values() for digest in _best(links)}


def _best(links: dict[str, str]) -> list[str]:
    """The run's best model; of a run that has none (yet), the last that it trained."""
    return [links[BEST]] if BEST in links else ends(links)


def ends(links: dict[str, str]) -> list[str]:
    """The run's best model and the last that it trained, where there are."""
    trained = sorted(label for label in links if "-finetune-iter-" in label)
    return [links[label] for label in (*([BEST] if BEST in links else []), *trained[-1:])]


def _made_from(digests: set[str], records: list[Record]) -> set[str]:
    """These and what they were made from, all the way up."""
    inputs: dict[str, list[str]] = {}
    for record in records:
        inputs.setdefault(record.digest, []).extend(input_digests(record.payload))
    reached: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest not in reached:
            reached.add(digest)
            waiting += inputs.get(digest, [])
    return reached


def demand_all(
    where: object, records: list[Record], there: Mapping[str, Pointer], outputs: Iterable[str], begun: Iterable[str]
) -> None:
    """Raises StoreError where `records` or `outputs` (digests, and on S3 sums of files) cannot be all of the store's:
    there are some of the one and none of the other; or a run leads to an output, or a record was made from one, that is
    there and that no record names. A shard of prompts is an input by its file's sum, which a record names among its
    files. `begun`: what a gc that died was about to remove (its list), of which the records went first."""
    there_now, named = set(outputs), {record.digest for record in records}
    if named and not named & there_now:
        remedy = "check that all of the store is there; if nothing of it is wanted, delete the store by hand"
        raise StoreError(
            f"{where}: gc removes nothing: the outputs of all {len(records)} records are missing; {remedy}."
        )
    lost = there_now - named - {file["sha256"] for record in records for file in record.files} - digests(begun)
    if not lost:
        return
    check = f"{where}: gc removes nothing, because records are missing"
    if not records:
        remedy = "check that all of the store is there; if nothing of it is wanted, delete the store by hand"
        raise StoreError(f"{check}: outputs and files are there ({len(lost)}), and no record; {remedy}.")
    again = "check that all of the store is there, then run the profile again"
    for run, (links, _) in sorted(there.items()):
        for label, digest in sorted(links.items()):
            if digest in lost:
                what = f"runs/{run} leads by {label} to the output {digest[:12]}, which is there without one"
                raise StoreError(f"{check}: {what}; {again} (or delete that link, if it is of no use).")
    for record in records:
        for digest in input_digests(record.payload):
            if digest in lost:
                what = f"{record.stage} {record.key[:12]} was made from the output {digest[:12]}, which is there"
                raise StoreError(f"{check}: {what} without one; {again} (or delete that output, if it is of no use).")


def removal(names: Iterable[str], finished: bool = False) -> bytes:
    """The content of LIST. `names`: places in the store, such as records/<stage>/<key>.json."""
    return (json.dumps({"finished": finished, "removes": sorted(names)}, indent=1) + "\n").encode()


def begun(content: bytes | None) -> set[str]:
    """The places in the list of a gc that did not finish; none where there is no list, or something else."""
    try:
        listed = json.loads(content or b"{}")
        return {str(name) for name in listed["removes"]} if listed.get("finished") is False else set()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()


def digests(places: Iterable[str]) -> set[str]:
    """The digests of outputs (or sums of files) that lie at these places."""
    return {
        place.rpartition("/")[2].removesuffix(".json") for place in places if place.startswith(("trees/", "files/"))
    }
