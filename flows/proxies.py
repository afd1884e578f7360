"""The proxy that the environment names: $HTTP_PROXY, $HTTPS_PROXY, $ALL_PROXY and $NO_PROXY, which every client reads.

Is not: a choice of one. The clients that spinloop uses (Prefect's, the hub's, that of S3) send a request to 127.0.0.1
to a proxy too; here is the one place that keeps those of this machine from it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.request import getproxies_environment

from spin_core.errors import BadInput

HERE = ("localhost", "127.0.0.1", "::1")


def keep_loopback_direct() -> None:
    """In this process and those that it starts, what is on this machine is asked directly."""
    proxies, direct = _settings()
    if not proxies or "*" in direct:  # where no variable names a proxy, macOS has settings of its own
        return
    # Both: a client takes the small name where it is set, and with it what the other says is forgotten.
    hosts = ",".join([*direct, *(host for host in HERE if host not in direct)])
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts


def check() -> None:
    """Raise BadInput where the environment names a proxy that Prefect's client cannot use. No sentence has its
    password."""
    proxies, direct = _settings()
    if not proxies or "*" in direct:
        return
    import httpx  # half a second, which the command line does not have

    for name, address in proxies.items():
        try:
            if address.lower().startswith("socks") and find_spec("socksio") is None:
                raise ImportError  # httpx before 0.28 says of socks5h first that it is no scheme
            httpx.HTTPTransport(proxy=address).close()
        except ImportError:
            why = "a SOCKS proxy needs the package socksio, which is not installed"
            remedy = "`pip install 'httpx[socks]'`, name an http:// proxy"
            raise BadInput(f"{name}: {why}; {remedy}, or unset {name}.") from None
        except (ValueError, httpx.InvalidURL):
            remedy = f"give one such as http://proxy.example.org:3128, or unset {name}"
            raise BadInput(f"{name}: this is no address of a proxy; {remedy}.") from None
    try:
        httpx.Client().close()
    except (ValueError, httpx.InvalidURL):
        hosts = ",".join(direct)
        raise BadInput(f"NO_PROXY: {hosts} has what is no host; give names and addresses without brackets.") from None


def _settings() -> tuple[dict[str, str], list[str]]:
    """The proxies that are in force, by the variable's name, and the hosts that are asked without one."""
    named = getproxies_environment()
    direct = [host for one in named.get("no", "").split(",") if (host := one.strip())]
    used = {scheme: named[scheme] for scheme in ("http", "https", "all") if scheme in named}
    return {f"{s.upper()}_PROXY": url if "://" in url else f"http://{url}" for s, url in used.items()}, direct
