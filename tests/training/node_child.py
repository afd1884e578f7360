"""Node 0 of two, in a network of its own: a finetune over both, and at which addresses its processes listen.

Arguments: node 0's address, the store's folder, a place to work, the inputs as JSON. What is printed is one JSON list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
from launched import runtime, spec
from training_data import DIGESTS, finetune_config

from spin_core.config.runtime import Compute
from spin_core.runtime.child import Child, launched
from spin_core.runtime.leader import Leader
from spin_core.runtime.meeting import Place

address, store, place, inputs = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
how = runtime(1).model_copy(update={"compute": Compute(nodes=2)})
seen: set[str] = set()


def look(event: dict) -> None:
    """While they train: who listens in this network."""
    if event.get("label") == "finetune":
        for line in psutil.net_connections(kind="inet"):
            if line.status == psutil.CONN_LISTEN:
                seen.add(line.laddr.ip)


with Leader(store, Place(0, "run-7", address)) as first:
    child = Child(launch=launched(how.model_dump(), first))
    try:
        config = finetune_config(lr=1e-3, schedule_epochs=2.0)
        child.run(spec("finetune", config, inputs, DIGESTS, place, how), look, timeout=280)
    finally:
        child.kill()
print(json.dumps(sorted(seen)))
