"""The artifact store: the cache that every step looks in before it computes.

    <dir>/spinloop-store-v1/
        trees/<digest>/               outputs, named by their content; files 0444, folders 0555
        records/<stage>/<key>.json    which output a key has, with the key's payload and the facts of its making
        takes/<key>.<n>.json          which steps were replaced on purpose, and how often (takes.py)
        runs/<run>/<label>            links a person can browse, and `latest`: views, never read by a lookup
        deltas/<digest>/…             weights of a tree as their difference to another tree's (pack.py)
        condemned/                    what a gc is going to remove from a store in use (condemned.py)
        quarantine/                   what was damaged, kept for a person
        tmp/  locks/  scratch/        work in hand; `gc` clears what nobody holds
        nodes/<meeting>/              where the nodes of a run meet (spin_core/runtime/meeting.py)
        gc.json                       what the last gc removed, or was about to
        store.yaml                    the policy by which gc gives runs up, where there is one

Promises
1. A record exists only if its tree was complete and durable before it (files, then tree, then record).
2. What `lookup` returns was hashed since it was read from disk; else it is a miss, and the damage is in quarantine/.
3. Trees and records are never modified or overwritten; the first writer wins. (`pack` takes weights out of a tree once
   their delta gives them back bit for bit, and they come back in it.)
4. No decision reads a clock.
5. Locks only save work: with locks broken the answers are the same.
6. Failing to publish raises; nothing partial is visible; what is left in tmp/ is gc's.
7. Reading a store runs no code and imports no module that data names.
8. Keys do not depend on machine, path, user, time, locale, hash seed or dict order.
9. Names in paths come only from us: hex digests, stage names, checked run names and labels.
10. The store may be deleted at any time; only time is lost.
11. gc removes only what it found unneeded twice and wrote down; nothing where what it read cannot be all (roots.py).

Not promised: protection from somebody who can rewrite a record and its tree consistently (nothing is signed); notice
of what changes on the disk between a look-up and the use of its output (the next look-up sees it); and sharing between
hosts without a POSIX file system.

A store is its owner's (0700). To let others read it: `chmod -R go+rX` on it, again after runs; its steps are then
cached for them, and they get a sentence where they would have to write.
"""
