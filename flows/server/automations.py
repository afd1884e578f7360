"""The automations of deployments/automations.yaml on a server, made and updated by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound

from spin_core.errors import BadInput

SHOWN = 4  # names of changed fields in one line of what `spinloop deploy` says


def notification_block(client: SyncPrefectClient, notify: str) -> UUID | None:
    """The saved block that `notify` names as type/name; None where it is empty."""
    if not notify:
        return None
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name or "-", kind).id
    except ObjectNotFound:
        raise BadInput(
            f"--notify {notify}: the server has no such block; save a notification block in the UI (Blocks) and name "
            "it as type/name, e.g. slack-webhook/team."
        ) from None


def automate(client: SyncPrefectClient, file: Path, block: UUID | None) -> Iterator[str]:
    """Bring every automation of `file` up to date, a line for each. One that is there keeps its switch, and its
    notification block where `block` is None."""
    for wanted in yaml.safe_load(file.read_text(encoding="utf-8")):
        there = next(iter(client.read_automations_by_name(wanted["name"])), None)
        if not _fill(client, wanted, block or _block_of(there)):
            remedy = "needs a saved notification block: `spinloop deploy --notify slack-webhook/team`"
            yield status_line("missing", "automation", f"{wanted['name']}: {remedy}")
            continue
        new = AutomationCore.model_validate(wanted)
        if there is None:
            client.create_automation(new)
            yield status_line(
                "created", "automation", wanted["name"] + ("" if new.enabled else ": off; switch it on in the UI")
            )
            continue
        fields = differing(_facts(there), _facts(new))
        if fields:
            client.update_automation(there.id, new.model_copy(update={"enabled": there.enabled}))
        yield status_line("changed" if fields else "same", "automation", wanted["name"], fields)


def _block_of(automation: Automation | None) -> UUID | None:
    blocks = [getattr(action, "block_document_id", None) for action in automation.actions] if automation else []
    return blocks[0] if blocks else None


def _fill(client: SyncPrefectClient, wanted: dict[str, Any], block: UUID | None) -> bool:
    """Put in the server's own ids; False where there is no block for a notification."""
    for action in wanted["actions"]:
        if "deployment" in action:
            action["deployment_id"] = client.read_deployment_by_name(action.pop("deployment")).id
        if action["type"] == "send-notification":
            if block is None:
                return False
            action["block_document_id"] = block
    return True


def _facts(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include={"description", "tags", "trigger", "actions"})


def status_line(state: str, what: str, name: str, fields: list[str] | None = None) -> str:
    """One line: what became of a thing, and the fields that changed."""
    fields = fields or []
    more = f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
    return f"{state:<8} {what:<11} {name}" + (f": {', '.join(fields[:SHOWN])}{more}" if fields else "")


def differing(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted names of what is not the same in two values."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [p for name in names for p in differing(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))]
    return [] if old == new else [path]
