"""What every real answer of S3 has. What lacks it came from somewhere between here and the service.

A sign-in page, a proxy's own page and an empty body arrive with status 200, and the client library makes of them an
answer without fields: a listing of nothing, an object that was written. Asked for here is only what all services send:
KeyCount, which Swift and older gateways leave out, counts where it is there, and without a delimiter, where some
services count otherwise. A deletion has nothing that could be looked at; nothing here hangs on its having happened.
"""

from __future__ import annotations

from typing import Any

FIELDS = {
    "get_object": ("ETag", "LastModified"),
    "head_object": ("ETag", "LastModified", "ContentLength"),
    "put_object": ("ETag",),
    "copy_object": ("CopyObjectResult",),
    "list_objects_v2": ("Name", "Prefix", "IsTruncated"),
    "list_multipart_uploads": ("Bucket",),
    "list_parts": ("UploadId",),
    "create_multipart_upload": ("UploadId",),
    "upload_part": ("ETag",),
    "complete_multipart_upload": ("ETag",),
}
OF_AN_OBJECT = ("Key", "Size", "ETag", "LastModified")
ALIAS = "-s3alias"
"""Ends the name of an access point of AWS: a listing through it may name the bucket behind it."""


class Strange(Exception):
    """Something answered, and it was not the service that was asked; the message says what showed it."""


def check(method: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
    """Raises Strange if `answer` is none of S3's to the request `method` with the parameters `asked`."""
    for name in FIELDS.get(method, ()):
        if not answer.get(name) and answer.get(name) not in (0, False):
            raise Strange(f"an answer without {name}")
    if method == "list_objects_v2":
        _check_page(asked, answer)
    elif method == "list_multipart_uploads":
        _check_place(asked, answer["Bucket"], [one.get("Key", "") for one in answer.get("Uploads", ())])


def _check_page(asked: dict[str, Any], answer: dict[str, Any]) -> None:
    objects = answer.get("Contents", [])
    for one in objects:
        for name in OF_AN_OBJECT:
            if name not in one:
                raise Strange(f"a listing of an object without {name}")
    _check_place(asked, answer["Name"], [one["Key"] for one in objects])
    if answer["Prefix"] != asked["Prefix"]:
        raise Strange(f"a listing of {answer['Prefix']}")
    count = answer.get("KeyCount", 0)
    if "Delimiter" not in asked and len(objects) < count:
        raise Strange(f"a listing of {len(objects)} objects that counts {count}")
    if answer["IsTruncated"]:
        following = answer.get("NextContinuationToken")
        if not following:
            raise Strange("a listing that goes on and does not say where")
        if following == asked.get("ContinuationToken"):
            raise Strange("a listing that goes on where it began")
    age = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("age", "0")
    if age.strip() != "0":
        raise Strange(f"a listing that a cache had kept for {age[:20]} s")


def _check_place(asked: dict[str, Any], bucket: str, keys: list[str]) -> None:
    if bucket != asked["Bucket"] and not asked["Bucket"].endswith(ALIAS):
        raise Strange(f"a listing of the bucket {bucket}")
    for key in keys:
        if not key.startswith(asked["Prefix"]):
            raise Strange(f"a listing of {key}")
