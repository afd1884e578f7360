"""Objects of one S3 prefix, through fsspec's s3fs: requests, and bounded retries.

Not here: what the objects mean (remote.py), how files travel (transfer.py), what went wrong, in words (refusals.py).
Of the services that fsspec knows only S3 and what speaks its protocol: resuming a multipart upload and creating an
object only where there is none are not part of fsspec's common interface. Credentials, region and endpoint are what the
AWS tools use ($AWS_ACCESS_KEY_ID, $AWS_PROFILE, ~/.aws, $AWS_ENDPOINT_URL, …); no argument, record or message has one.
Credentials that the service calls expired are looked for once more there. `import` loads nothing of s3fs.

One process's: fsspec works in a thread, which a fork does not take along.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from spin_core.errors import BadInput, StoreError
from spin_core.store.record import MAX_BYTES
from spin_core.store.s3 import answers, refusals

URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[\w!.*'() /=-]*))?", re.ASCII)
INSTALL = "`pip install s3fs` (in a checkout `.venv/bin/pip install -c constraints.txt -e '.[s3]'`)"
ATTEMPTS = 8  # with the pauses below 25 s: a service that restarts; $AWS_MAX_ATTEMPTS has another number
LONGEST_PAUSE = 10.0
CONNECTIONS = 32
LISTINGS = ("list_objects_v2", "list_multipart_uploads")  # of a prefix: there is always an answer, which may be empty
# How services answer a header that they do not know; the others ignore it. 400 alone has many other causes.
UNCONDITIONAL = {405, 501}
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}  # seconds
UNCONDITIONAL_CODES = {"NotImplemented", "InvalidRequest", "InvalidArgument"}


@dataclass(frozen=True)
class Stat:
    """An object without its bytes. `key` is relative to the store; `modified` is the service's clock."""

    key: str
    size: int
    etag: str
    modified: datetime


class Objects:
    """The objects below s3://bucket/prefix/; keys are relative to it. Every method raises StoreError, naming the
    place and a remedy, once the service has failed it ATTEMPTS times, and at once for what no repetition helps."""

    def __init__(self, url: str, inside: str) -> None:
        """`inside`: a folder below the prefix. Raises BadInput for another URL than S3's or without s3fs."""
        parts = URL.fullmatch(url)
        if not parts:
            scheme = url.partition("://")[0]
            why = "only S3 is known so far" if scheme != "s3" else "no bucket and prefix"
            raise BadInput(f"--store {url}: {why}; give s3://bucket/prefix, or a folder.")
        self.bucket, prefix = parts["bucket"], (parts["prefix"] or "").strip("/")
        self.above = f"{prefix}/" if prefix else ""
        self.url = f"s3://{self.bucket}/{prefix}".rstrip("/")
        self.prefix = f"{self.above}{inside}/"
        self.conditional: bool | None = None
        """Whether the service creates an object only where there is none; None: not known yet."""
        self.attempts = _attempts()
        self._renewing = threading.Lock()
        self._fs = _filesystem(tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith("AWS_"))))

    def endpoint(self) -> str:
        """The service's address, whichever of environment, profile and ~/.aws names it. Known after a request."""
        return str(self._fs.s3.meta.endpoint_url)

    def get(self, key: str) -> bytes | None:
        """A small object's bytes; None if there is none. Of more than MAX_BYTES, which nothing of ours has that is
        read whole, b"": not what it should be, whatever it is."""
        answer = self._request("get_object", key)
        return None if answer is None else answer["Body"]

    def read(self, key: str, start: int, count: int) -> bytes | None:
        """`count` bytes from `start`; None if there is no such object, or it is shorter."""
        answer = self._request("get_object", key, Range=f"bytes={start}-{start + count - 1}")
        return answer["Body"] if answer and len(answer["Body"]) == count else None

    def head(self, key: str) -> Stat | None:
        """Size, etag and time of an object; None if there is none."""
        answer = self._request("head_object", key)
        return Stat(key, answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"]) if answer else None

    def listed(self, below: str) -> Iterator[Stat]:
        """All objects whose key begins so, by key; not the empty ones that consoles make to show a folder. Raises
        StoreError for a page that is none, is of another place, is cut off, or has what another one had."""
        token: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            page = self._listing(Prefix=self.prefix + below, **token)
            for one in page.get("Contents", ()):
                name = one["Key"].removeprefix(self.prefix)
                if name in seen:
                    raise StoreError(f"{self.url}: a listing has {name} twice; see to the service and run again.")
                seen.add(name)
                if name and not name.endswith("/"):
                    yield Stat(name, one["Size"], one["ETag"].strip('"'), one["LastModified"])
            if not page["IsTruncated"]:
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def beside(self) -> list[str]:
        """Names of what looks like stores of any format below the prefix."""
        above = f"{self.above}spinloop-store-"
        page = self._listing(Prefix=above, Delimiter="/")
        return sorted(one["Prefix"].removeprefix(self.above).strip("/") for one in page.get("CommonPrefixes", ()))

    def put(self, key: str, data: bytes) -> None:
        """Writes a small object, in place of what is there: for views and leases alone."""
        self._request("put_object", key, Body=data, **_checked(data))

    def put_once(self, key: str, data: bytes) -> bool:
        """Writes an object where there is none; False if there is one. The service checks its sha256 where it can.

        Where the service has no conditional create (`probe`), two writers that meet here may both get True.
        """
        if self.conditional is False:
            if self.head(key) is not None:
                return False
            self.put(key, data)
            return True
        try:
            self._request("put_object", key, Body=data, IfNoneMatch="*", **_checked(data))
        except StoreError as error:
            code, status = refusals.answer(error.__cause__)
            if status == 412:
                return False
            if self.conditional is None and (
                status in UNCONDITIONAL or (status == 400 and code in UNCONDITIONAL_CODES)
            ):
                self.conditional = False
                return self.put_once(key, data)
            raise
        return True

    def probe(self, name: str) -> bool:
        """Whether the service takes what is written, and creates conditionally; tried once. Raises StoreError where
        nothing can be written."""
        if self.conditional is None:
            self.put_once(name, b"probe")  # also where its answer was lost: what counts is the second
            again = self.put_once(name, b"probe")
            self.delete(name)
            self.conditional = not again and self.conditional is not False
        return self.conditional

    def delete(self, key: str) -> None:
        """Removes an object, if it is there."""
        self._request("delete_object", key)

    def copy(self, key: str, to: str) -> None:
        """Copies an object within the service (of at most 5 GB, S3's limit of one request)."""
        self._request("copy_object", to, CopySource={"Bucket": self.bucket, "Key": self.prefix + key})

    def now(self) -> datetime:
        """The service's clock, which no computer that uses the store sets."""
        from email.utils import parsedate_to_datetime

        date = self._listing(Prefix=self.prefix, MaxKeys=1)["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            return parsedate_to_datetime(date)
        except ValueError:
            raise StoreError(f"{self.url}: the service does not say what time it is; see to it there.") from None

    def _listing(self, **parameters: Any) -> dict[str, Any]:
        page = self._request("list_objects_v2", "", **parameters)
        if page is None:  # `_request` says so of an object that is not there, and this is none
            raise StoreError(f"{self.url}: the service does not list what is there; see to it and run again.")
        return page

    def uploads(self, below: str) -> list[tuple[str, str, datetime]]:
        """(key, upload id, when it began) of the multipart uploads in hand whose key begins so."""
        uploads: list[tuple[str, str, datetime]] = []
        marker: dict[str, str] = {}
        while True:
            page = self._request("list_multipart_uploads", below, Prefix=self.prefix + below, **marker) or {}
            for one in page.get("Uploads", ()):
                uploads.append((one["Key"].removeprefix(self.prefix), one["UploadId"], one["Initiated"]))
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return uploads
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def parts(self, key: str, upload: str) -> dict[int, tuple[int, str]] | None:
        """Part number → (size, etag) of what an upload has; None if there is no such upload."""
        there: dict[int, tuple[int, str]] = {}
        marker = 0
        while True:
            page = self._request("list_parts", key, UploadId=upload, PartNumberMarker=marker)
            if page is None:
                return None
            there |= {one["PartNumber"]: (one["Size"], one["ETag"].strip('"')) for one in page.get("Parts", ())}
            if not page.get("IsTruncated") or not page.get("Parts"):
                return there
            marker = page["NextPartNumberMarker"]

    def begin(self, key: str) -> str:
        """Begins a multipart upload; its id."""
        return str((self._request("create_multipart_upload", key) or {})["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str | None:
        """Uploads one part; its etag, None if there is no such upload (any more)."""
        done = self._request("upload_part", key, UploadId=upload, PartNumber=number, Body=data)
        return done["ETag"].strip('"') if done else None

    def complete(self, key: str, upload: str, etags: dict[int, str]) -> bool:
        """Makes the parts one object; False if there is no such upload (any more)."""
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(etags.items())]
        done = self._request("complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts})
        return done is not None

    def abort(self, key: str, upload: str) -> None:
        """Gives up a multipart upload and its parts."""
        self._request("abort_multipart_upload", key, UploadId=upload)

    def _request(self, method: str, key: str, **parameters: Any) -> dict[str, Any] | None:
        """One request, again while the service is busy or away; None where it says that there is no such thing."""
        parameters["Bucket"] = self.bucket
        if method not in LISTINGS:
            parameters["Key"] = self.prefix + key
        pause = 0.2
        for left in reversed(range(self.attempts)):
            used = self._fs
            try:
                answer = self._once(used, method, parameters)
                answers.check(method, parameters, answer)
                return answer
            except Exception as raised:
                error = self._explained(used, method, parameters, raised)
                code, _ = refusals.answer(error)
                if code in refusals.GONE and method not in LISTINGS:
                    return None
                if code in refusals.OUTDATED and self._renewed(used):
                    return self._request(method, key, **parameters)
                is_passing = refusals.passes(error)
                if left and is_passing:
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                why = refusals.why(error, self.attempts if is_passing else 1)
                if why is None:
                    raise  # a defect of ours
                raise StoreError(f"{self.url}: {why}.") from error
        raise AssertionError("unreachable")

    def _once(self, filesystem: Any, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        from fsspec.asyn import sync

        async def call() -> dict[str, Any]:
            client = await filesystem.set_session()
            client.meta.events.register_first("needs-retry.s3", refusals.stay, unique_id="spinloop-stay")
            answer: dict[str, Any] = await filesystem._call_s3(method, **parameters)
            if "Body" in answer:
                fits = answer.get("ContentLength", 0) <= MAX_BYTES or "Range" in parameters
                async with answer["Body"] as body:
                    answer["Body"] = await body.read() if fits else b""
            return answer

        answered: dict[str, Any] = sync(filesystem.loop, call)
        return answered

    def _explained(self, used: Any, method: str, parameters: dict[str, Any], error: Exception) -> Exception:
        """The error of the same question asked by GET, whose answer has a reason: that to a HEAD has no body."""
        code, status = refusals.answer(error)
        if method != "head_object" or not 400 <= status < 500 or code in refusals.GONE:
            return error
        try:
            self._once(used, "get_object", {**parameters, "Range": "bytes=0-0"})
        except Exception as again:
            code, _ = refusals.answer(again)
            return error if code in refusals.GONE else again
        return error

    def _renewed(self, used: Any) -> bool:
        """Whether there are other credentials by now than those that `used` has; then they are used from here on."""
        with self._renewing:
            if self._fs is used:
                fresh = _made()
                if _credentials(fresh) == _credentials(used):
                    return False
                self._fs = fresh
            return True


@cache
def _filesystem(settings: tuple[tuple[str, str], ...]) -> Any:
    """One for all stores of a process and these settings: a client takes a second to make."""
    return _made()


def _made() -> Any:
    """A new one, which reads environment, profile and ~/.aws anew."""
    try:
        import fsspec
        import s3fs  # noqa: F401
    except ImportError:
        raise BadInput(f"a store on S3 needs s3fs, which is not installed: {INSTALL}.") from None
    made = fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        use_listings_cache=False,
        # All repetition is in `_request`: three layers that each try five times wait for minutes.
        config_kwargs={"retries": {"total_max_attempts": 1}, "max_pool_connections": CONNECTIONS} | TIMEOUTS,
    )
    made.retries = 1
    return made


def _credentials(filesystem: Any) -> Any:
    """What a client of this process signs with at the moment; None where there is nothing."""
    from botocore.exceptions import BotoCoreError
    from fsspec.asyn import sync

    async def current() -> Any:
        await filesystem.set_session()
        held = await filesystem.session.get_credentials()
        return held and await held.get_frozen_credentials()

    try:
        return sync(filesystem.loop, current)
    except (BotoCoreError, OSError, ValueError):
        return None


def _attempts() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text, re.ASCII):
        raise BadInput(f"AWS_MAX_ATTEMPTS={text}: not a number of tries; give e.g. {ATTEMPTS}.")
    return int(text)


def is_same(stat: Stat | None, seen: Stat | None) -> bool:
    """Whether what is there now (or is not) is what was seen."""
    return (stat and (stat.etag, stat.modified)) == (seen and (seen.etag, seen.modified))


def md5(data: bytes) -> str:
    """What the etag is of an object or part that is not encrypted."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _checked(data: bytes) -> dict[str, str]:
    return {"ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
