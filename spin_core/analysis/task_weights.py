"""What an item of a harness task counts in the mean over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def weights(tasks: Mapping[str, dict[str, Any]], counts: Mapping[str, int]) -> dict[str, float]:
    """Task (or subtask) → weight of each of its items, so that the mean over all items is the mean of the tasks'
    values, as leaderboards take it: a group by its own mean, and with a minus where less is better.

    `tasks`: those of results.json. `counts`: items of each task; tasks without items count for nothing. Of a single
    task the weight is 1 and not nearly so: the paired test looks whether items are just right or wrong.
    """
    groups = {
        name: [leaf for leaf in entry.get("subtasks", [name]) if counts.get(leaf)] for name, entry in tasks.items()
    }
    total, several = sum(counts.values()), sum(map(bool, groups.values()))
    weight = {}
    for name, leaves in groups.items():
        items = sum(counts[leaf] for leaf in leaves)
        for leaf in leaves:
            part = 1 / len(leaves) if tasks[name].get("mean") == "subtasks" else counts[leaf] / items
            weight[leaf] = total / counts[leaf] * part / several * (1 if tasks[name]["higher_is_better"] else -1)
    return weight
