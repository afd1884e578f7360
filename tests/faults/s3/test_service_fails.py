"""A service that is slow, away, full of errors or set up wrongly: waited for so long, then one sentence."""

from __future__ import annotations

import random

import pytest

from spin_core.errors import BadInput, StoreError
from spin_core.store.opening import exists, open_store
from spin_core.store.s3.remote import RemoteStore
from tests.faults.fault import LEVEL, Fault
from tests.faults.s3.server import BUCKET, KEYS
from tests.faults.store.battery import FILES, PAYLOAD, ROOT, STEP, assert_right, compute
from tests.faults.store.kinds import Step

AWAY = Fault("R29", "S3 answers 500, 503 or 429, now and then", pr=2, night=40, release=200)
DOWN = Fault("R29", "S3 is gone from any request of a publication on")


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.startswith("s3://") and text.endswith(".") and "\n" not in text and "Traceback" not in text, text
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in text
    return text


def test_errors_that_pass_are_waited_for(url, at, proxy):
    """Catches a run of days that a busy service ends."""

    def trial(rng: random.Random) -> None:
        left = {}

        def meddle(request) -> int | None:
            again = left.setdefault((request.method, request.path, request.query), rng.choice((0, 0, 1, 2)))
            left[request.method, request.path, request.query] = again - 1
            return rng.choice((500, 503, 429)) if again > 0 else None

        proxy.forget()
        proxy.meddle = meddle
        step = Step({**PAYLOAD, "config": {"n": rng.random()}}, FILES)
        assert_right(compute(at("a"), step))
        assert_right(at(f"b {rng.random()}").lookup(step.stage, step.key))

    AWAY.run(trial)


def test_service_that_goes_away_fails_the_step_and_not_the_next_run(at, proxy, monkeypatch):
    """Catches a publication that is half there, reported as complete, or lost, wherever in it the service went away."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.forget()
    compute(at("counted"), Step({**PAYLOAD, "config": {"n": -1}}, FILES))
    count = sum(one.method in ("PUT", "GET", "HEAD") for one in proxy.requests)

    def trial(point: int) -> None:
        step = Step({**PAYLOAD, "config": {"n": point}}, FILES)
        proxy.forget()
        proxy.meddle = lambda one: 503 if len(proxy.requests) > point else None
        published = False
        try:
            compute(at("a"), step)
            published = True
        except StoreError as error:
            one_sentence(error)
        proxy.forget()
        seen = at("b").lookup(step.stage, step.key)
        if seen is not None or published:
            assert_right(seen)
        ran: list[str] = []
        assert_right(compute(at("a"), step, ran))
        assert_right(at("b").lookup(step.stage, step.key))

    DOWN.each(range(4, count, 3 if LEVEL != "pr" else 5), trial)


def test_service_that_is_down_is_one_sentence(url, at, proxy, monkeypatch):
    """Catches a traceback, an endless wait, and a look-up that takes a service which is away for an empty one."""
    store = at("a")
    compute(store, STEP)
    proxy.meddle = lambda request: 503
    with pytest.raises(StoreError) as failed:
        store.lookup(STEP.stage, STEP.key)
    assert "after 4 tries" in one_sentence(failed.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with pytest.raises(StoreError) as failed:
        RemoteStore(url)
    assert "does not answer" in one_sentence(failed.value) and "AWS_ENDPOINT_URL" in str(failed.value)


def test_what_is_set_up_wrongly_is_one_sentence(url, proxy, monkeypatch):
    """Catches a wrong bucket, prefix, scheme, key or number that ends in a traceback or in another store."""
    with pytest.raises(StoreError, match="no such bucket"):
        RemoteStore("s3://no-such-bucket-here/x")
    for wrong in ("gs://bucket/x", "s3://", "s3:///x", "s3://Bucket/x", "file:///tmp/x"):
        with pytest.raises(BadInput, match=r"give s3://bucket/prefix, or a folder\."):
            open_store(wrong)
    with pytest.raises(StoreError, match="there is no spinloop store here"):
        open_store(url, create=False)
    with pytest.raises(StoreError, match="no such bucket"):
        exists("s3://no-such-bucket-here/x")
    assert not exists(url)
    for tries in ("many", "0", "-1", "1e9"):
        with monkeypatch.context() as patch, pytest.raises(BadInput, match=f"AWS_MAX_ATTEMPTS={tries}: not a number"):
            patch.setenv("AWS_MAX_ATTEMPTS", tries)
            open_store(url)
    monkeypatch.setenv("SPINLOOP_CACHE_GB", "many")
    with pytest.raises(BadInput, match="SPINLOOP_CACHE_GB=many"):
        open_store(url)
    monkeypatch.setenv("SPINLOOP_CACHE_GB", "1")
    monkeypatch.setenv("SPINLOOP_FETCH", "never")
    with pytest.raises(BadInput, match="SPINLOOP_FETCH=never"):
        open_store(url)


def test_no_credentials_is_one_sentence(url, proxy, monkeypatch, tmp_path):
    """Catches a missing login that ends in a traceback, or in requests that nobody signed."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no AWS credentials"):
        RemoteStore(url)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="AWS_PROFILE"):
        RemoteStore(url)


def test_store_of_another_format_is_refused(url, at):
    """Catches a bucket that a later version wrote, and that this one writes into."""
    at("a").objects._fs.call_s3(
        "put_object", Bucket=BUCKET, Key=f"{url.rpartition('/')[2]}/spinloop-store-v2/id", Body=b""
    )
    with pytest.raises(StoreError, match="a store of another format"):
        at("b")


def test_credentials_are_nowhere(at, tmp_path):
    """Catches a secret in a record, in the bucket or in the cache folder."""
    store = at("a")
    compute(store, STEP)
    store.link_run("demo", {"best": "a" * 64})
    store.write_run_file("demo", "steps.json", b"[]")
    secrets = [KEYS["AWS_SECRET_ACCESS_KEY"].encode(), KEYS["AWS_ACCESS_KEY_ID"].encode()]
    there = [store.objects.get(stat.key) or b"" for stat in store.objects.listed("")]
    here = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(there) > 6 and not [data for data in there + here if any(secret in data for secret in secrets)]


def test_without_s3fs_it_says_what_to_install():
    """Catches a store URL that ends in a traceback where the extra is not installed, and an import that needs it."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['s3fs'] = None; sys.modules['boto3'] = None\n"
        "import spin_core, spin_core.store.s3.remote\n"
        "from spin_core.errors import BadInput\n"
        "loaded = {name for name, module in sys.modules.items() if module is not None}\n"
        "assert not {'s3fs', 'fsspec', 'botocore', 'aiobotocore'} & loaded, 'loaded without need'\n"
        "from spin_core.store.opening import open_store\n"
        "try: open_store('s3://bucket/x')\n"
        "except BadInput as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == (
        "a store on S3 needs s3fs, which is not installed: `pip install s3fs` (in a checkout "
        "`.venv/bin/pip install -c constraints.txt -e '.[s3]'`).\n"
    )
