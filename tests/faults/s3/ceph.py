"""Ceph's S3 gateway on loopback, with its data in memory: a server that people really run, where Debian's packages
`radosgw`, `ceph-mon`, `ceph-osd` and `ceph-common` are installed. Without them the tests that want it are skipped."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("ceph", "monmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
SECONDS = 180
CONF = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon}
mon_initial_members = a
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_objectstore = memstore
memstore_device_bytes = 4294967296
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
public_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_msgr2 = false
keyring = /dev/null
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""


@contextmanager
def served(access: str, secret: str) -> Iterator[str]:
    """The gateway's address; it knows these keys. Skips the test where Ceph is not installed."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        pytest.skip(f"Ceph's S3 gateway is not installed: {', '.join(missing)} (apt: radosgw ceph-mon ceph-osd)")
    folder = Path(tempfile.mkdtemp(prefix="spinloop-ceph-"))
    mon, port = _free(), _free()
    fsid = str(uuid.uuid4())
    (folder / "ceph.conf").write_text(CONF.format(folder=folder, fsid=fsid, mon=mon, port=port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def run(*command: object) -> None:
            subprocess.run(
                [*map(str, command), "-c", "ceph.conf"], cwd=folder, check=True, capture_output=True, timeout=SECONDS
            )

        def start(*command: str) -> None:
            process = subprocess.Popen(
                [*command, "-f", "-c", "ceph.conf"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)

        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"v1:127.0.0.1:{mon}", "monmap")
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "create")
        run("ceph-osd", "-i", 0, "--mkfs")
        run("ceph", "osd", "crush", "add", "osd.0", 1, "root=default", "host=h")
        start("ceph-osd", "-i", "0")
        run(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test", f"--access-key={access}",
            f"--secret-key={secret}",
        )  # fmt: skip
        start("radosgw", "-n", "client.admin")
        url = f"http://127.0.0.1:{port}"
        _await(url)
        yield url


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            opener.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"Ceph's gateway did not come up in {SECONDS} s")
