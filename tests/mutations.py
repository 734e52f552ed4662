"""Files made wrong in the ways in which files go wrong, or are made to."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["mutated", "mutated_json"]

# What readers of texts and of binary files trip over.
_TOKENS = (
    *(
        b"",
        b"\0",
        b"\n",
        b"\r",
        b"\r\n",
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\\",
        b"{",
        b"}",
        b"[" * 2000,
        b"\xef\xbb\xbf",
    ),
    *(
        b"\xff\xfe",
        b"\xff",
        b"\xed\xb3\xa9",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"9" * 5000,
        b"null",
        b"\xe2\x80\xae",
    ),
    *(b"../../../", b"\x1b[31m", b"A" * 100_000, b"\x80\x02c", b"%s%n"),
)
_LENGTHS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def mutated(content: bytes, samples: Sequence[bytes], rng: random.Random) -> bytes:
    """A file with one to three things done to it; parts of `samples` may be put into it."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = bytearray(content)
        rng.choice(_WAYS)(data, samples, rng)
        content = bytes(data)
    return content


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with values of another type, size or depth, or entries lost, doubled or strange."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _with_other_value(value, rng)
    return json.dumps(value).replace('"@deep"', "[" * 3000 + "]" * 3000).encode(errors="surrogatepass")


def _place(data: bytearray, rng: random.Random) -> int:
    """Headers are hit as often as all the rest."""
    return rng.randrange(min(len(data), rng.choice((64, 512, len(data) or 1))) or 1)


def _flip(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 4, 32))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))


def _truncate(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _length(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    size = rng.choice((2, 4, 4, 8))
    at = _place(data, rng)
    value = rng.choice(_LENGTHS) % 256**size
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _zeros(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    count = min(rng.choice((4, 64, 4096)), len(data) - at)
    data[at : at + count] = bytes(count)


def _remove(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 4, 64, 1024))]


def _double(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 64, 1024))] * rng.choice((1, 1, 50))


def _swap(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    size = rng.choice((4, 12, 64, 512))
    first, second = sorted((_place(data, rng), _place(data, rng)))
    one, other = bytes(data[first : first + size]), bytes(data[second : second + size])
    if first + size <= second:
        data[second : second + size] = one
        data[first : first + size] = other


def _splice(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(samples)
    start, end = _place(data, rng), rng.randrange(len(other) + 1)
    data[start:] = other[end:]


def _insert(data: bytearray, samples: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.choice(_TOKENS)


_WAYS: tuple[Callable[[bytearray, Sequence[bytes], random.Random], None], ...] = (
    *(_flip, _set, _truncate, _length, _length, _zeros, _remove, _double, _swap, _splice, _insert),
)


def _with_other_value(value: Any, rng: random.Random) -> Any:
    """One value somewhere in a JSON value is another."""
    inside = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not inside or rng.random() < 0.15:
        return _strange(value, rng)
    key = rng.choice(list(inside))
    way = rng.random()
    if way < 0.1:
        del value[key]
    elif way < 0.15 and isinstance(value, dict):
        value[_strange_text(rng)] = value.pop(key)
    elif way < 0.2 and isinstance(value, list):
        value.extend(value * rng.choice((1, 50)))
    else:
        value[key] = _with_other_value(value[key], rng)
    return value


def _strange(value: Any, rng: random.Random) -> Any:
    number = value if isinstance(value, int | float) else 1
    choices = (
        *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, -(2**64), 10**400, 1e308, math.nan, math.inf, -math.inf),
        *(number + 1, -number, number * 10**9, str(value), [value], {"a": value}, [], {}, [[]], [0] * 1000, "@deep"),
        _strange_text(rng),
    )
    return rng.choice(choices)


def _strange_text(rng: random.Random) -> str:
    return rng.choice(
        (
            "",
            "x",
            "0",
            "nan",
            "../..",
            "/dev/zero",
            "\0",
            "\n",
            "\x1b[31m",
            "\udce9",
            "\u202e",
            "é" * 50_000,
            "file:x",
            "hf-hub:a",
        )
    )
