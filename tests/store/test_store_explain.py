"""Why a step is not cached, in words."""

from __future__ import annotations

import pytest

from spin_core.store.explain import differences, explain, nearest
from spin_core.store.keys import payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from tests.faults.store.battery import publish

A, B, C = "a" * 64, "b" * 64, "c" * 64
FINETUNE = {"beta": 0.1, "loss": "sigmoid"}


def finetune(
    version: int = 1, seed: float = 42, pairs: str | list[str] = A, template: str = "model", **settings
) -> dict:
    config = {"finetune": FINETUNE | settings, "chat": {"template": template}, "seed": seed}
    return payload("finetune", version, config, {"model": B, "pairs": pairs})


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        (finetune(), []),
        (finetune(beta=0.5), ["finetune.beta: 0.1 → 0.5"]),
        (finetune(version=2), ["version of finetune: 1 → 2"]),
        (finetune(pairs=C), ["input pairs changed"]),
        (finetune(pairs=[A]), ["input pairs changed"]),
        (finetune(beta=1), ["finetune.beta: 0.1 → 1"]),
        (finetune(warmup=None), ["finetune.warmup: (unset) → null"]),
        (finetune(loss=""), ['finetune.loss: sigmoid → ""']),
        (finetune(loss="x" * 99), [f"finetune.loss: sigmoid → {'x' * 59}…"]),
        (
            finetune(version=2, seed=1, template="paper", beta=0.5, loss="hinge", pairs=C),
            [
                "version of finetune: 1 → 2",
                "finetune.beta: 0.1 → 0.5",
                "finetune.loss: sigmoid → hinge",
                "chat.template: model → paper",
                "seed: 42 → 1",
                "input pairs changed",
            ],
        ),
        (
            payload("finetune", 1, {"finetune": FINETUNE, "chat": {"template": "model"}}, {"model": B, "logps": C}),
            ["seed: 42 → (unset)", "input logps added", "input pairs removed"],
        ),
    ],
)
def test_differences_are_listed_most_telling_first(new, lines):
    """Catches a person being shown the seed, or an input, where the version is the reason."""
    assert differences(finetune(), new) == lines


def test_differences_values_that_look_alike_are_still_listed():
    """Catches "0.1 → 0.1": long texts that differ behind the cut."""
    assert differences(finetune(loss="x" * 99 + "a"), finetune(loss="x" * 99 + "b")) == ["finetune.loss changed"]
    assert differences(finetune(seed=1), finetune(seed=1.0)) == ["seed: 1 → 1.0"]


def test_differences_in_a_list_of_sections_name_the_place():
    """Catches a mix of sets shown as 60 characters of JSON, twice, of which the weight that changed is cut off."""
    old, new = ([{"name": "a" * 50, "weight": 1}, {"name": "b", "weight": n}] for n in (1, 2))
    assert differences(finetune(sets=old), finetune(sets=new)) == ["finetune.sets.1.weight: 1 → 2"]
    assert differences(finetune(sets=old), finetune(sets=new[:1])) == ["finetune.sets changed"]
    assert differences(finetune(sets=[]), finetune(sets=["a"])) == ['finetune.sets: [] → ["a"]']


def test_nearest_is_the_record_with_the_fewest_differences(store):
    """Catches comparing with any record: a person would be shown ten differences instead of one."""
    for seed in range(8):
        publish(store, finetune(beta=9.0, seed=seed))
    near = publish(store, finetune(beta=9.0), {"x": b"2"})
    publish(store, payload("generate", 1, {}, {}), {"x": b"3"})
    assert nearest(store, finetune()) == near
    assert nearest(store, payload("sft", 1, {}, {})) is None


def test_nearest_tie_is_broken_the_same_way_in_every_store(place):
    """Catches an answer that depends on the order of files in a folder."""
    answers = set()
    for i, betas in enumerate([(0.2, 0.3, 0.4), (0.4, 0.3, 0.2)]):
        store = Store(place / str(i))
        for beta in betas:
            publish(store, finetune(beta=beta))
        neighbour = nearest(store, finetune())
        assert neighbour is not None
        answers.add(neighbour.key)
    assert len(answers) == 1


def test_explain_simple_cases(store):
    """Catches saying "never ran" of what is cached, and the reverse."""
    assert explain(store, finetune()) == "never ran before"
    publish(store, finetune())
    assert explain(store, finetune()) == "cached"
    assert explain(store, finetune(beta=0.5)) == "finetune.beta: 0.1 → 0.5"
    assert explain(store, finetune(pairs=C)) == "input pairs changed"


def test_explain_record_without_its_tree_is_not_cached(store):
    """Catches a plan that promises a hit where the folder is gone."""
    record = publish(store, finetune())
    record.path.chmod(0o755)
    record.path.rename(store.root / "gone")
    assert explain(store, finetune()) == "its output is missing from the store"


def chain(store: Store, name: str, temperature: float = 1.0, rows: str = A, gather_version: int = 1) -> Record:
    """generate ×2 → gather; each output's bytes are `name`, so that they differ between chains."""
    config = {"generate": {"temperature": temperature}, "seed": 42}
    shards = [
        publish(
            store, payload("generate", 1, config, {"model": B, "prompts": prompts}), {"a": (name + prompts).encode()}
        )
        for prompts in (rows, C)
    ]
    made = payload("gather", gather_version, {}, {"answers": [s.digest for s in shards]})
    return publish(store, made, {"pairs": name.encode()})


def test_explain_changed_input_is_followed_to_the_setting_that_changed_it(store):
    """Catches stopping at "an input changed": the cause is two steps up."""
    old, new = chain(store, "one"), chain(store, "two", temperature=0.7)
    publish(store, finetune(pairs=[old.digest]))
    request = finetune(pairs=[new.digest])
    assert explain(store, request) == "input pairs changed because generate.temperature: 1.0 → 0.7"


def test_explain_changed_input_from_outside_names_the_last_known_step(store):
    """Catches a traceback, or a cause made up, where no record made the input."""
    old, new = chain(store, "one"), chain(store, "two", rows="d" * 64)
    publish(store, finetune(pairs=[old.digest]))
    explanation = explain(store, finetune(pairs=[new.digest]))
    assert explanation == "input pairs changed because input prompts changed"


def test_explain_shards_that_stayed_are_no_cause(store):
    """Catches blaming a shard that both runs had, when the new run only has one shard more."""
    shards = [
        publish(store, payload("generate", 1, {}, {"prompts": prompts}), {"a": prompts.encode()}).digest
        for prompts in (A, B, C)
    ]
    old, new = (
        publish(store, payload("gather", 1, {}, {"answers": some}), {"pairs": "".join(some).encode()})
        for some in (shards[:2], shards)
    )
    publish(store, finetune(pairs=old.digest))
    assert explain(store, finetune(pairs=new.digest)) == "input pairs changed because input answers changed"


def test_explain_nearer_cause_wins_over_a_farther_one(store):
    """Catches running past the step that changed by itself."""
    old, new = chain(store, "one"), chain(store, "two", gather_version=2, temperature=0.5)
    publish(store, finetune(pairs=[old.digest]))
    explanation = explain(store, finetune(pairs=[new.digest]))
    assert explanation == "input pairs changed because version of gather: 1 → 2"


def test_explain_own_setting_wins_over_a_changed_input(store):
    """Catches sending a person upstream when the step itself was edited."""
    old, new = chain(store, "one"), chain(store, "two", temperature=0.7)
    publish(store, finetune(pairs=[old.digest]))
    assert explain(store, finetune(beta=0.5, pairs=[new.digest])) == "finetune.beta: 0.1 → 0.5"
