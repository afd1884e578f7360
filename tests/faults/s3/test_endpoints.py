"""Addresses, regions, certificates and credentials that are not in order: each is told for what it is, at once where no
repetition helps, and what can still be had by itself is."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store.s3 import transfer
from spin_core.store.s3.objects import Objects
from tests.faults.s3.machine import contents
from tests.faults.s3.server import KEYS, Refusal, S3Request, part_numbers
from tests.faults.s3.test_service_fails import one_sentence
from tests.faults.s3.test_uploads import KEY, publish
from tests.faults.store.battery import assert_right

NOWHERE = "s3://bucket/prefix"
EMPTY = (
    b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix>prefix/x/</Prefix>'
    b"<KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


def told(url: str = NOWHERE, ask=lambda objects: list(objects.listed(""))) -> str:
    """The sentence of a request that fails."""
    with pytest.raises(StoreError) as failed:
        ask(Objects(url, "x"))
    return one_sentence(failed.value)


@pytest.fixture
def once(monkeypatch):
    """Each request is made once: what is told is looked at here, and not how long it is waited for."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


ASKED = {
    "list": lambda objects: list(objects.listed("")),
    "head": lambda objects: objects.head("k"),
    "put": lambda objects: objects.put("k", b"data"),
    "part": lambda objects: objects.put_part("k", "upload", 1, b"data"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_redirect_is_one_sentence_and_not_followed(url, proxy, once, asked):
    """Catches a client that asks for the bucket's region with a request that is redirected too, without end
    (RecursionError), one that follows without a signature ("access denied"), and a page to sign in that is read as an
    empty store."""
    no_place = f"{proxy.url} redirects, and does not say where to; set AWS_ENDPOINT_URL"
    other = Refusal(301, "PermanentRedirect", "<Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint>")
    cases = [(Refusal(301), no_place), (other, no_place if asked == "head" else "set AWS_DEFAULT_REGION")]
    for status in (301, 307):
        dead = {"Location": "https://127.0.0.1:9/elsewhere?X-Amz-Signature=secret"}
        sign_in = {"Location": f"{proxy.url}/login?from=here"}
        cases += [
            (Refusal(status, headers=dead), "at 127.0.0.1:9 ("),
            (Refusal(status, headers=sign_in), f"{proxy.url} redirects to {proxy.url}/login; set AWS_ENDPOINT_URL"),
        ]
    for refusal, message in cases:
        proxy.forget()
        proxy.meddle = lambda request, refusal=refusal: (
            Refusal(200, text="<html>Sign in</html>") if request.path == "/login" else refusal
        )
        text = told(url, ASKED[asked])
        assert message in text and "Signature" not in text, (refusal, text)
        assert len(proxy.requests) <= 2, "tried again and again"


def test_head_says_why(url, proxy):
    """Catches "the service answered 400": the answer to a HEAD has no body, and so no reason."""
    for status, code, message in [
        (400, "ExpiredToken", "the credentials have expired"),
        (403, "AccessDenied", "access denied"),
        (403, "SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
        (403, "RequestTimeTooSkewed", "the clocks of this computer and the service differ"),
        (400, "AuthorizationHeaderMalformed", "set AWS_DEFAULT_REGION"),
        (405, "Odd", "the service answered Odd"),
    ]:
        proxy.meddle = lambda request, status=status, code=code: Refusal(status, code)
        assert message in told(url, ASKED["head"])
    proxy.meddle = lambda request: 403 if request.method == "HEAD" else None
    assert "the service answered 403 and no reason" in told(url, ASKED["head"]), "GET has none either"
    proxy.meddle = lambda request: Refusal(200)
    assert "a proxy, a cache or a sign-in page stands between" in told(url, ASKED["head"])
    proxy.meddle = lambda request: Refusal(503, "SlowDown") if request.method == "HEAD" and limit.pop() else None
    limit = [False, True, True]
    assert Objects(url, "x").head("k") is None, "what passes is waited for"


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "s3.example.org", "127.0.0.1:9000", "htp://s3.example.org", "//host", "http://"]
)
def test_endpoint_that_is_no_address_is_named(proxy, monkeypatch, endpoint):
    """Catches a missing http:// for which four settings are suspected."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    text = told()
    assert f"AWS_ENDPOINT_URL: {endpoint} is no address; give one such as https://" in text
    assert "AWS_PROFILE" not in text and "REGION" not in text


def test_setting_that_is_wrong_is_named(proxy, once, monkeypatch, tmp_path):
    """Catches a sentence that leaves the one wrong setting to be guessed, and a password in it."""
    (tmp_path / "broken").write_text("[default\n")
    (tmp_path / "process").write_text("[default]\ncredential_process = /bin/false\n")
    no_keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    for settings, message in [
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE: there is no profile 'nobody'"),
        ({"AWS_DEFAULT_REGION": "eu west!"}, "AWS_DEFAULT_REGION: 'eu west!' is no region"),
        ({"AWS_CONFIG_FILE": str(tmp_path / "broken")}, f"{tmp_path / 'broken'}: it cannot be read as AWS settings"),
        (
            {"AWS_CONFIG_FILE": str(tmp_path / "process"), **no_keys},
            "the credentials cannot be fetched (custom-process",
        ),
        (
            {"AWS_ENDPOINT_URL": "https://127.0.0.1:9", "AWS_CA_BUNDLE": "/nowhere.pem"},
            "AWS_CA_BUNDLE: the file is not",
        ),
        ({"AWS_ENDPOINT_URL": "http://me:secret@127.0.0.1:9"}, "without user and password"),
        ({"AWS_ENDPOINT_URL": "http://nowhere.invalid:9000"}, "does not answer at nowhere.invalid:9000 ("),
    ]:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            text = told()
        assert message in text and "me:secret" not in text, text


def test_refusals_name_their_remedy(url, proxy, once):
    """Catches "see to it there" for what is to be set here: clock, region, the bucket's place in the address."""
    region = "<Region>eu-west-1</Region>"
    for refusal, message in [
        (Refusal(403, "RequestTimeTooSkewed"), "the clocks of this computer and the service differ"),
        (Refusal(400, "AuthorizationHeaderMalformed", region), "set AWS_DEFAULT_REGION to its own, eu-west-1."),
        (Refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}), "to its own, eu-west-1."),
        (Refusal(403, "SecondLevelDomainForbidden"), "addressing_style = virtual"),
        (Refusal(404, "NoSuchBucket"), "there is no such bucket"),
        (Refusal(400, "InvalidToken"), "AWS_SESSION_TOKEN"),
        (Refusal(503, "SlowDown"), "asks for fewer requests (SlowDown); run again later"),
        (Refusal(507, "XMinioStorageFull"), "has no space left"),
        (Refusal(400, text="Client sent an HTTP request to an HTTPS server."), "check AWS_ENDPOINT_URL"),
        (Refusal(404, text="not found"), "the service answered 404 and no reason"),
        (Refusal(200, text="<html>"), "check AWS_ENDPOINT_URL"),
    ]:
        proxy.meddle = lambda request, refusal=refusal: refusal
        assert message in told(url), refusal


def test_certificate_of_a_private_ca(proxy, monkeypatch, tmp_path):
    """Catches a certificate that is not trusted, tried again for 25 seconds and then called an absent service."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9999")  # each try would take a moment
    with secure(tmp_path) as (port, certificate):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{port}")
        assert "certificate is not trusted here; set AWS_CA_BUNDLE to the file of its CA" in told()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert list(Objects(NOWHERE, "x").listed("")) == []
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9999")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("http:", "https:"))
    assert "no TLS connection can be made; check whether AWS_ENDPOINT_URL is http:// or https://" in told()


@contextmanager
def secure(folder: Path) -> Iterator[tuple[int, Path]]:
    """An empty bucket behind TLS: its port, and the certificate that it shows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(EMPTY)))
            self.end_headers()
            self.wfile.write(EMPTY)

        def log_message(self, *_: object) -> None:
            pass

    file = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a client that trusts it not
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, file
    finally:
        server.shutdown()
        server.server_close()


def _certificate(folder: Path) -> Path:
    """A new key and its own certificate, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "spinloop-test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(here, critical=False).sign(key, hashes.SHA256())
    file = folder / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def log_in(monkeypatch, tmp_path):
    """Writes ~/.aws/credentials, as a login does."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def write(key: str) -> None:
        secret = KEYS["AWS_SECRET_ACCESS_KEY"]
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\naws_session_token = t-{key}\n"
        (tmp_path / "credentials").write_text(text)

    write("first")
    return write


def test_credentials_that_expire_in_an_upload_are_looked_for_again(at, proxy, log_in):
    """Catches a run of days that ends with the token of its first hour, although somebody has logged in again, and
    parts that are sent twice."""
    files = contents({"w": transfer.PART + 5}, 7)
    refused: list[S3Request] = []

    def expire(request: S3Request) -> Refusal | None:
        if request.access_key == "second" or not proxy.parts():
            return None
        log_in("second")
        refused.append(request)
        return Refusal(400, "ExpiredToken")

    store = at()
    proxy.meddle = expire
    assert_right(publish(store, files), files)
    assert {one.access_key for one in proxy.requests} == {"first", "second"}
    assert refused and len(part_numbers(proxy.requests)) == 2 + len(part_numbers(refused)), "sent twice"
    assert_right(at("b").lookup("finetune", KEY), files)


def test_credentials_that_are_expired_for_good_are_one_sentence_and_nothing_is_lost(at, proxy, log_in):
    """Catches eight tries with a token that is not going to be good again, and an upload that begins anew after the
    next login."""
    files = contents({"w": transfer.PART + 5}, 8)
    store = at()
    proxy.forget()
    proxy.meddle = lambda request: Refusal(403, "ExpiredToken") if proxy.parts() > 1 else None
    with pytest.raises(StoreError, match="the credentials have expired; log in again, and run again") as failed:
        publish(store, files)
    one_sentence(failed.value)
    log_in("second")
    proxy.forget()
    [(key, upload, _)] = store.objects.uploads("files/")
    there = store.objects.parts(key, upload)
    assert len(there) == 1
    assert_right(at().lookup("finetune", KEY), files)
    assert sorted(part_numbers(proxy.requests)) == [n for n in (1, 2) if n not in there]
