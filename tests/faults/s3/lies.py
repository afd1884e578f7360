"""What is answered in the place of a service: pages that are none, and pages that are not of now, of here, or all."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.faults.s3.held import Answer, Asked, Held, page

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>Sign in</form></body></html>"
NO_XML = b"<html><body><p>Sign in<br></body>"
OTHER = "another-bucket"
Page = Callable[[Held, Asked, Answer, random.Random], Answer]


def _objects(held: Held, asked: Asked) -> list[tuple[str, bytes]]:
    return [(key, held.objects[key]) for key in sorted(held.objects) if key.startswith(asked.prefix)]


def _body(body: bytes, status: int = 200, **headers: str) -> Page:
    return lambda held, asked, answer, rng: Answer(status, body, dict(headers))


def _cut_off(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    return Answer(200, answer.body[: rng.randrange(len(answer.body))])


def _fewer(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    """Said to be all."""
    there = _objects(held, asked)
    return Answer(200, page(asked.prefix, there[: rng.randrange(len(there) + 1)]))


def _fewer_than_counted(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    there = _objects(held, asked)
    return Answer(200, page(asked.prefix, there[: len(there) // 2], count=len(there) + 1))


def _some(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    return Answer(200, page(asked.prefix, [one for one in _objects(held, asked) if rng.random() < 0.7]))


def _old(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    """Of before the last outputs had records, and before this gc began."""
    there = [one for one in _objects(held, asked) if one[0].rpartition("/")[2] != "gc"]
    return Answer(200, page(asked.prefix, [one for one in there if "/records/finetune/" not in one[0]]))


def _of_a_cache(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    there = [one for one in _objects(held, asked) if "/records/" not in one[0]]
    return Answer(200, page(asked.prefix, there), {"Age": "86400"})


def _goes_on(token: str) -> Page:
    more = f"<IsTruncated>true</IsTruncated>{token}".encode()
    return lambda held, asked, answer, rng: Answer(
        200, page(asked.prefix, []).replace(b"<IsTruncated>false</IsTruncated>", more)
    )


def _moved(held: Held, asked: Asked, answer: Answer, rng: random.Random) -> Answer:
    """The same store under another prefix."""
    there = [(f"other/{key}", data) for key, data in _objects(held, asked)]
    return Answer(200, page(rng.choice((asked.prefix, f"other/{asked.prefix}")), there))


PAGES: dict[str, Page] = {
    "an empty body": _body(b""),
    "a sign-in page": _body(HTML),
    "a page that is no XML": _body(NO_XML),
    "JSON": _body(b'{"error": "sign in"}'),
    "an error with status 200": _body(b"<Error><Code>SlowDown</Code></Error>"),
    "a listing without fields": _body(b"<ListBucketResult></ListBucketResult>"),
    "a redirect to a sign-in page": _body(HTML, 302, Location="https://sign-in.example/"),
    "no content": _body(b"", 204),
    "a page cut off": _cut_off,
    "fewer, said to be all": _fewer,
    "fewer than are counted": _fewer_than_counted,
    "some, each time others": _some,
    "no object": lambda held, asked, answer, rng: Answer(200, page(asked.prefix, [])),
    "an old listing": _old,
    "a listing that a cache kept": _of_a_cache,
    "a page that goes on nowhere": _goes_on(""),
    "a page that goes on for ever": _goes_on("<NextContinuationToken>x</NextContinuationToken>"),
    "another bucket's listing": lambda held, asked, answer, rng: Answer(200, page(asked.prefix, [], bucket=OTHER)),
    "another prefix's listing": _moved,
    "another prefix's, which is empty": lambda held, asked, answer, rng: Answer(200, page(f"other/{asked.prefix}", [])),
}
REAL = ("fewer, said to be all", "some, each time others", "no object", "an old listing")
"""Of these each page by itself could be a real one."""
NONE = {name: PAGES[name] for name in list(PAGES)[:8] if name != "a page that is no XML"}
BODIES: dict[str, Page] = {
    name: PAGES[name] for name in ("an empty body", "a sign-in page", "JSON", "a redirect to a sign-in page")
} | {
    "a body cut off": lambda held, asked, answer, rng: answer._replace(body=answer.body[: len(answer.body) // 2]),
    "an empty object": lambda held, asked, answer, rng: answer._replace(body=b""),
    "another object's body": lambda held, asked, answer, rng: answer._replace(body=b'{"links": {}, "order": []}'),
    "no such object": _body(b"<Error><Code>NoSuchKey</Code></Error>", 404),
}
