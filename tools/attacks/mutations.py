"""Damage: of bytes, whatever they mean, and of JSON, by what it says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

from attacks.odd import dumps, odd_json, short

_FOREIGN = (
    (b"", "empty"),
    (b"\0" * 4096, "zeros"),
    (b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    (b"<!DOCTYPE html><html></html>", "a web page"),
    (b"PK\x03\x04" + bytes(64), "the start of a zip"),
    (b"\x7fELF" + bytes(64), "the start of a library"),
    (b"\xff\xfe{\0}\0", "UTF-16"),
    (b"null", "null"),
    (b"[]", "a list"),
    (b"{}", "an object"),
    (b'"x"', "a string"),
    (b"1", "a number"),
)


def damage_bytes(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Flip, cut, insert, repeat, swap, or replace; and what was done."""
    if not data or rng.random() < 0.08:
        return rng.choice(_FOREIGN)
    changed, size = bytearray(data), len(data)
    where = rng.choice((rng.randrange(size), min(size - 1, int(rng.expovariate(1 / 200)))))
    length = min(size - where, rng.choice((1, 1, 2, 4, 8, 100, 1000)))
    way = rng.randrange(8)
    if way <= 2:
        count = rng.choice((1, 1, 1, 2, 8, 64))
        for _ in range(count):
            changed[rng.randrange(size) if count > 1 else where] ^= 1 << rng.randrange(8)
        return bytes(changed), f"{count} bits flipped" + ("" if count > 1 else f" at {where}")
    if way == 3:
        return bytes(changed[:where]), f"cut at {where} of {size}"
    if way == 4:
        del changed[where : where + length]
        return bytes(changed), f"{length} bytes taken out at {where}"
    if way == 5:
        changed[where:where] = rng.randbytes(length)
        return bytes(changed), f"{length} random bytes put in at {where}"
    if way == 6:
        changed[where : where + length] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * length
        return bytes(changed), f"{length} bytes overwritten at {where}"
    changed[where:where] = changed[where : where + length] * rng.choice((1, 3))
    return bytes(changed), f"{length} bytes repeated at {where}"


def damage_file(rng: Random, path: Path) -> str:
    """``damage_bytes`` of a file, in place."""
    data, what = damage_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {what}"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, the whole excepted."""
    found: list[tuple[Any, ...]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in pairs:
        found.append((*path, key))
        if isinstance(one, (dict, list)):
            found += _places(one, (*path, key))
    return found


def damage_json(rng: Random, content: Any) -> tuple[str, str]:
    """Change one to three places of a JSON value: other types and numbers, missing, doubled, nested.

    Returns:
        The text, and what was done.
    """
    content, done = copy.deepcopy(content), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(content) if isinstance(content, (dict, list)) else []
        if not places or rng.random() < 0.02:
            content = odd_json(rng)
            done.append(f"all of it is {short(content)}")
            break
        # The first level is as likely as all below it: there are the fields that matter.
        place = rng.choice(rng.choice(([one for one in places if len(one) == 1], places)))
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        key, name = place[-1], ".".join(map(str, place))[:60]
        way = rng.randrange(8)
        if way == 0:
            del holder[key]
            done.append(f"{name} is missing")
        elif way == 1 and isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
            done.append(f"{name} has another name")
        elif way == 2:
            holder[key] = [holder[key]]
            done.append(f"{name} is in a list")
        elif way == 3 and isinstance(holder[key], (int, float)):
            holder[key] = str(holder[key])
            done.append(f"{name} is text")
        elif way == 4 and isinstance(holder[key], int):
            holder[key] = rng.choice(
                (holder[key] + 1, holder[key] - 1, holder[key] * 2, -holder[key])
            )
            done.append(f"{name} is {holder[key]}")
        elif way == 5 and isinstance(content, dict) and len(place) == 1:
            value = odd_json(rng)
            done.append(f"{name} occurs twice, then as {short(value)}")
            text = dumps((*content.items(), (key, value)))
            return text, "; ".join(done)
        else:
            holder[key] = odd_json(rng)
            done.append(f"{name} is {short(holder[key])}")
    return dumps(content), "; ".join(done)


def damage_json_file(rng: Random, path: Path) -> str:
    """``damage_json`` of a file, in place."""
    text, what = damage_json(rng, json.loads(path.read_text(encoding="utf-8")))
    path.write_text(text, encoding="utf-8")
    return f"{path.name}: {what}"


def set_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; ``Raw`` text goes in as it is."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(dumps({**content, **fields}), encoding="utf-8")
