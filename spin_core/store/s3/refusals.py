"""What a failed request to object storage means, in words: what the service answered, or why it could not be asked.

Not here: repeating requests (objects.py). No sentence has a key, a signature or the password of an address.
"""

from __future__ import annotations

import os
import urllib.request
from typing import Any
from urllib.parse import urlsplit

GONE = {"NoSuchKey", "NoSuchUpload", "404", "InvalidRange", "416"}
"""There is no such thing."""
BUSY = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ConditionalRequestConflict", "OperationAborted"}
OUTDATED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}
"""Of credentials that were good once, and may have been replaced since."""
REGIONS = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
VIRTUAL = "the service wants the bucket in the host's name; set `s3 =` / `addressing_style = virtual` in ~/.aws/config"
EXPIRED = "the credentials have expired; log in again, and run again (what was uploaded is not sent again)"
PROXIES = "HTTPS_PROXY (or HTTP_PROXY)"
REMEDIES = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the name",
    "InvalidBucketName": "the service allows no bucket of this name; correct it",
    "AccessDenied": "access denied; the credentials need s3:ListBucket, GetObject, PutObject and DeleteObject here",
    "InvalidAccessKeyId": "the service does not know this access key; check AWS_ACCESS_KEY_ID or the AWS profile",
    "SignatureDoesNotMatch": "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
    "InvalidToken": "the service does not know this session token; check AWS_SESSION_TOKEN, or log in again",
    "RequestTimeTooSkewed": "the clocks of this computer and the service differ by more than it allows; set this one",
    "SecondLevelDomainForbidden": VIRTUAL,
    "PathStyleDomainForbidden": VIRTUAL,
    "QuotaExceeded": "the quota is used up; free some space (`spinloop store gc`)",
    "XMinioStorageFull": "the service has no space left; free some (`spinloop store gc`)",
    "EntityTooLarge": "the service takes no object of this size",
} | dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), EXPIRED)


class Redirected(Exception):
    """The service sent the request elsewhere; there its signature is not good."""

    def __init__(self, start: str, to: str) -> None:
        super().__init__(to)
        self.start, self.to = _origin(start), _origin(to)
        if self.to == self.start:  # of a page to sign in, say
            self.to = to.partition("?")[0]


def stay(response: Any, request_dict: dict[str, Any], **_: Any) -> None:
    """A handler of botocore's `needs-retry`: raises Redirected for a redirect, unless it names the bucket's region,
    which botocore follows with a new signature. Of others it looks for the region with a request that is redirected
    too, and so on without end; aiohttp follows them without a signature."""
    if response is None:
        return
    http, parsed = response
    start = request_dict["url"]
    if 300 <= http.status_code < 400:
        if not _region(parsed):
            raise Redirected(start, parsed.get("Error", {}).get("Endpoint") or http.headers.get("location", ""))
    elif getattr(http.raw, "history", ()):
        raise Redirected(start, http.url)


def answer(error: BaseException | None) -> tuple[str, int]:
    """(code, HTTP status) of what the service answered; ("", 0) where it did not answer."""
    answered = _answered(error)
    code = str(answered.get("Error", {}).get("Code") or "")
    return code, int(answered.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def passes(error: Exception) -> bool:
    """Whether the same request may be answered in a while."""
    code, status = answer(error)
    if status:
        return status != 501 and (code in BUSY or status >= 500 or status == 429)
    kind = type(error).__name__
    # Some services answer a rate limit, and some gateways a restart, with something that is no XML.
    return kind in ("ResponseParserError", "Strange") or (_is_away(error) and not _is_set_wrong(error))


def why(error: Exception, tries: int) -> str | None:
    """The sentence, without a full stop, of a request that failed `tries` times; None for a defect of ours."""
    code, status = answer(error)
    often = f" after {tries} tries" if tries > 1 else ""
    if code in REGIONS:
        region = _region(_answered(error))
        return f"the bucket is in another region; set AWS_DEFAULT_REGION to its own{region and f', {region}'}"
    if code in REMEDIES:
        return REMEDIES[code]
    if code == "SlowDown":
        return f"the service asks for fewer requests (SlowDown){often}; run again later, or with fewer runs at once"
    if status and (not code or code == str(status)):
        return f"the service answered {status} and no reason{often}; check AWS_ENDPOINT_URL, and see to it there"
    if status:
        return f"the service answered {code}{often}; see to it there and run again"
    return _unasked(error, often)


def _unasked(error: Exception, often: str) -> str | None:
    """Why no service of this protocol answered."""
    kind = type(error).__name__
    of = getattr(error, "kwargs", {})
    if isinstance(error, Redirected):
        return _elsewhere(error)
    if kind in ("ResponseParserError", "Strange"):
        what = "an answer that is no XML of S3" if kind == "ResponseParserError" else str(error)
        return (
            f"{what} came instead of the service's{often}: a proxy, a cache or a sign-in page stands between, or "
            "AWS_ENDPOINT_URL is not S3's; see to it and run again"
        )
    if text := _setting(error, kind, of):
        return text
    if kind == "SSLError":
        return _distrusted(str(of.get("error")), _origin(str(of.get("endpoint_url"))))
    if not _is_away(error) and not _is_of_library(error):
        return None
    return f"the service does not answer {_place(error, kind, of)}{often}; check {_suspects(of)}, and run again"


def _elsewhere(error: Redirected) -> str:
    if not error.to:
        return f"{error.start} redirects, and does not say where to; set AWS_ENDPOINT_URL to the service itself"
    if ".amazonaws.com" in error.to:
        return f"{error.start} redirects to {error.to}; set AWS_DEFAULT_REGION to the bucket's region"
    return f"{error.start} redirects to {error.to}; set AWS_ENDPOINT_URL to where the service itself is"


def _setting(error: Exception, kind: str, of: dict[str, Any]) -> str:
    """What in the AWS settings is not in order; empty where it is something else."""
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        return "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if kind in ("CredentialRetrievalError", "TokenRetrievalError"):
        return f"the credentials cannot be fetched ({of.get('provider')}); log in again, or see to the AWS profile"
    if "SSO" in kind or "Login" in kind:
        return "the login has expired; run `aws sso login` (or `aws login`) for the profile, and run again"
    if kind == "ProfileNotFound":
        return f"AWS_PROFILE: there is no profile {of.get('profile')!r} in ~/.aws/config or ~/.aws/credentials"
    if kind == "InvalidRegionError":
        return f"AWS_DEFAULT_REGION: {of.get('region_name')!r} is no region; give one such as us-east-1"
    if kind == "NoRegionError":
        return "there is no region; set AWS_DEFAULT_REGION"
    if kind in ("ConfigParseError", "ConfigNotFound"):
        return f"{of.get('path')}: it cannot be read as AWS settings; correct it"
    if kind == "EndpointResolutionError" or (kind == "ValueError" and "endpoint" in str(error)):
        given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "endpoint_url in ~/.aws"
        return f"AWS_ENDPOINT_URL: {_bare(given)} is no address; give one such as https://s3.example.org:9000"
    if kind == "HTTPClientError" and isinstance(of.get("error"), ValueError):
        return f"AWS_ENDPOINT_URL or {PROXIES} is no address that can be asked; correct it (without user and password)"
    if kind != "SSLError" and _is_set_wrong(error):
        return "AWS_CA_BUNDLE: the file is not there or has no certificate; name the file of the service's CA"
    return ""


def _distrusted(reason: str, at: str) -> str:
    """The sentence of a TLS connection that was not made."""
    if at.startswith("http:"):
        return f"{at} redirects to https; set AWS_ENDPOINT_URL to where the service itself is"
    if "CERTIFICATE_VERIFY_FAILED" in reason or "ertificate" in reason:
        return f"{at}: its certificate is not trusted here; set AWS_CA_BUNDLE to the file of its CA"
    return f"{at}: no TLS connection can be made; check whether AWS_ENDPOINT_URL is http:// or https://"


def _place(error: Exception, kind: str, of: dict[str, Any]) -> str:
    """Where nobody answered: what was connected to in the end, which redirects and proxies change."""
    inner = of.get("error")
    host, port = getattr(inner, "host", None), getattr(inner, "port", None)
    at = f"{host}:{port}" if host and port else _origin(str(of.get("proxy_url") or of.get("endpoint_url") or ""))
    return f"at {at} ({kind})" if at else f"({kind})"


def _suspects(of: dict[str, Any]) -> str:
    """The settings that say where a request goes: the endpoint, and the proxy if one is used."""
    url = urlsplit(str(of.get("endpoint_url") or ""))
    scheme = url.scheme or "https"
    is_proxied = scheme in urllib.request.getproxies() and not (
        url.hostname and urllib.request.proxy_bypass(url.hostname)
    )
    proxy = f" and {scheme.upper()}_PROXY (or NO_PROXY)" if is_proxied or "proxy_url" in of else ""
    return f"AWS_ENDPOINT_URL, the network{proxy}" if proxy else "AWS_ENDPOINT_URL and the network"


def _answered(error: BaseException | None) -> dict[str, Any]:
    for one in (error, error.__cause__ if error else None):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response
    return {}


def _region(answered: dict[str, Any]) -> str:
    headers = answered.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or answered.get("Error", {}).get("Region") or "")


def _is_away(error: Exception) -> bool:
    """Whether the connection failed, and not what was requested."""
    from botocore import exceptions as boto

    return isinstance(
        error,
        boto.ConnectionError | boto.HTTPClientError | boto.ResponseStreamingError | TimeoutError | ConnectionError,
    ) or type(error).__module__.startswith("aiohttp")


def _is_set_wrong(error: Exception) -> bool:
    """Whether no repetition of a connection helps: certificates that are not trusted or not there, no address."""
    import ssl

    inner = getattr(error, "kwargs", {}).get("error")
    return isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError | ssl.SSLError | ValueError)


def _is_of_library(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError

    return isinstance(error, BotoCoreError | OSError | ValueError)


def _origin(url: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else url.partition("/")[0]


def _bare(url: str) -> str:
    """An address, which need not be one, without user and password."""
    head, mark, rest = url.rpartition("@")
    return f"{head.partition('://')[0]}://{rest}" if mark and "://" in head else rest
