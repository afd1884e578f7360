"""What a store gives up by its policy: age, quota, pins; and a year of weekly runs that stays below its quota."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spin_core.errors import BadInput
from spin_core.store import keep
from spin_core.store.gc import gc
from spin_core.store.store import Store
from tests.store.year import QUOTA, Year

NOW = datetime(2026, 11, 30, tzinfo=UTC)
GB = 10**9
RUNS = {f"run-{n}": ({"best": f"best-{n}", "made": f"made-{n}", "rows": "rows"}, n) for n in range(6)}
SIZES = {"rows": GB} | {f"best-{n}": GB for n in range(6)} | {f"made-{n}": 10 * GB for n in range(6)}
OUTPUTS = {digest: {digest: size, "tokenizer": 1000} for digest, size in SIZES.items()}
"""Each with a file that all share."""
BEGAN = {f"run-{n}": NOW - timedelta(days=10 * (5 - n)) for n in range(6)}


def needed(forget) -> set[str]:
    """As roots.needed: all of the runs that stay, and every best."""
    stay = {digest for run, (links, _) in RUNS.items() if run not in forget for digest in links.values()}
    return stay | {links["best"] for links, _ in RUNS.values()}


def decide(policy: keep.Policy, pinned=(), began=BEGAN) -> keep.Decision:
    return keep.decide(policy, RUNS, began, pinned, OUTPUTS, needed, NOW)


def test_by_age() -> None:
    """Catches a run of 30 days that goes at `30d`, a pinned or the last one that goes, and one of unknown age."""
    made = decide(keep.Policy(older_than=timedelta(days=30)))
    assert list(made.forget) == ["run-0", "run-1"] and made.forget["run-0"] == "last started 50 days ago"
    assert list(decide(keep.Policy(older_than=timedelta(days=30)), pinned=["run-0"]).forget) == ["run-1"]
    old = {run: NOW - timedelta(days=400) for run in RUNS}
    assert list(decide(keep.Policy(older_than=timedelta(days=30)), began=old).forget) == list(RUNS)[:-1]
    assert list(decide(keep.Policy(2, timedelta(days=30)), began=old).forget) == list(RUNS)[:-2]
    assert list(decide(keep.Policy(0, timedelta(days=30)), began=old).forget) == list(RUNS)
    assert list(decide(keep.parse({"older_than": "0d"}, "x")).forget) == list(RUNS)[:-1]
    made = decide(keep.Policy(older_than=timedelta(days=30)), began={"run-0": BEGAN["run-0"]})
    assert list(made.forget) == ["run-0"] and made.unknown == ("run-1", "run-2", "run-3", "run-4")


def test_by_size() -> None:
    """Catches more runs than are needed to fit, and bytes of best models that are counted as free."""
    assert decide(keep.Policy(max_size=67 * GB + 1000)).forget == {}
    made = decide(keep.Policy(max_size=50 * GB))
    assert list(made.forget) == ["run-0", "run-1"] and made.size == 47 * GB + 1000
    assert "more than 50 GB" in made.forget["run-0"]
    assert list(decide(keep.Policy(max_size=50 * GB), pinned=["run-0"]).forget) == ["run-1", "run-2"]
    made = decide(keep.Policy(older_than=timedelta(days=30), max_size=50 * GB), began={})
    assert list(made.forget) == ["run-0", "run-1"] and made.unknown == ("run-2", "run-3", "run-4")
    both = decide(keep.Policy(older_than=timedelta(days=45), max_size=50 * GB))
    assert list(both.forget) == ["run-0", "run-1"] and both.forget["run-0"].startswith("last started")


def test_quota_that_is_too_small_says_what_holds_it() -> None:
    """Catches a gc that takes a best model or a pinned run to fit, or that says no more than "too small"."""
    with pytest.raises(BadInput) as error:
        decide(keep.Policy(max_size=20 * GB), pinned=["run-2"])
    assert str(error.value) == (
        "max_size: 20 GB are less than the 27 GB that must stay: the best models of 6 runs take 6 GB, pinned (run-2) "
        "11 GB more, the latest (run-5) 11 GB more. Raise it, unpin a run (`spinloop store unpin RUN`) or give one up "
        "(`spinloop store forget RUN`)."
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([], "write settings"),
        ({"max_sise": "1TB"}, "max_sise: unknown setting; there are keep_runs, older_than, max_size, pack, while_used"),
        ({"max_size": "1"}, "'1' is no size; write it with its unit"),
        ({"max_size": 5}, "5 is no size"),
        ({"max_size": "-5GB"}, "no size"),
        ({"older_than": "1m"}, "'1m' is no age; write days or weeks"),
        ({"older_than": "99999999999d"}, "no age"),
        ({"keep_runs": -1}, "-1 is no number of runs"),
        ({"keep_runs": True}, "True is no number of runs"),
        ({"pack": "yes please"}, "neither true nor false"),
    ],
)
def test_bad_policy_is_one_sentence(data, what) -> None:
    with pytest.raises(BadInput, match=what) as error:
        keep.parse(data, "store.yaml")
    assert str(error.value).startswith("store.yaml: ")


def test_policy_reads_units() -> None:
    """Catches 2 TB of 1024s or a week of five days."""
    policy = keep.parse({"older_than": "12w", "max_size": "2 TB", "keep_runs": 3, "pack": True}, "x")
    assert policy == keep.Policy(3, timedelta(days=84), 2 * 10**12, True)
    assert keep.parse({"max_size": "1.5gb"}, "x").max_size == 1_500_000_000


def test_pinned_run_stays_whichever_way_gc_is_asked(store: Store) -> None:
    """Catches a pin that only a policy heeds."""
    year = Year(store)
    year.rerun(0)
    year.pin()
    year.rerun(1)
    gc(store, keep_runs=0)
    assert all(store.lookup(one.stage, one.key) for one in year.pinned)
    store.remove_run_file(f"year-{0:06x}", keep.PINNED)
    gc(store, keep_runs=0)
    assert not all(store.lookup(one.stage, one.key) for one in year.pinned)


def test_a_year_of_weekly_runs_stays_below_its_quota(store: Store) -> None:
    """52 reruns on a dataset that grows, a gc after each. Catches a store that grows over its quota, a best model, a
    pinned or the last run that is lost, and rows that are generated again although they were there."""
    year = Year(store)
    for week in range(52):
        year.rerun(week)
        if week == 10:
            year.pin()
        year.clear(week)
    assert max(year.after) <= QUOTA < max(year.before) and year.lost() == []
    assert year.total > 1.5 * QUOTA, "the year would have fitted anyway"
    assert year.generated_again == 0
