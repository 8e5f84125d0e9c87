"""Files bent where it hurts: values, keys, shapes, offsets and nesting of the JSON in them, the
texts within that are JSON, Python or YAML themselves, and lengths that lie."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

from vft_lib.files.untrusted import read_literal

from .targets import SEPARATOR, Target, layout

RAW = "\x00RAW"  # what follows is written as it is, whether or not it is JSON
AGAIN = "\x00AGAIN"  # a key that is written without this: the same key twice
NAMES = ["ids", "__metadata__", "config", "vft", "<<", "", "x" * 3000, "\x1b[2J", "\ud800"]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 64, 255, 256, 1000, 4096, 65535, 65536, 1 << 20,
    1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -(1 << 63), 0.5, 1e-9, 1e9, 1e308,
    5e-324, -0.0, "", "a", "1", "null", "None", "crop", "full", "sincos", "text", "class", "both",
    "table", "factorized", "tokenizer", "prior", "F32", "BF16", "F16", "U16", "F64", "I64", "BOOL",
    "F8_E4M3", "C64", "F4", "\ud800", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "two\nlines", "\r",
    "\x00", "\u202egnp.exe", "a\u0300" * 9, "é", "日本", "../../etc/passwd", "/etc/passwd", "%s%n",
    "__import__('os').system('id')", "!!python/object/apply:os.system [id]", "x" * 5000, [], {},
    [0], [1], [1, 1], [1, 1, 1], [256, 256], [32768, 2], [2] * 16, [65536, 1], [1] * 2000,
    [1 << 62, 4], [0, 1 << 62], ["a", "a"], [[1, 1.0]], {"a": 1}, {"_target_": "os.system"},
]  # fmt: skip
RAWS = [
    "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 400, "0x10", "01", "[" * 400,
    "[" * 2000 + "]" * 2000, '{"a":' * 300 + "1" + "}" * 300, '"\\ud800"', '"\\u0000"', "1.0", "-0",
    "1E5", "tru", "'a'", "\x00", "[1,]", "/**/1", '"\x7f"', "1 2",
]  # fmt: skip
TEXTS = [
    "[" * 60 + "]" * 60, "-" * 3000 + "1", "(" * 150 + ")" * 150, "{" * 100, "1:1:1:1:1:1", "~",
    "&a [*a]", "&a {b: *a}", "2001-01-01", "0x" + "f" * 6000, "1" * 6000, "b'bytes'", "1+2j", "...",
    "{1, 2}", "!!set {a, b}", "!!binary aGk=", "<<: {a: 1}", "? a", "'\\d'", "'a' 'b'", "[1,\n2]",
    "&a [1,1,1,1,1,1,1,1,1]", "(1, 2)", "{'a': 1, 'a': 2}", "a: 1\na: 2", "{1: 2}",
    "!!python/name:os.system",
    "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 9)),
    "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1},' * 9}]}}\n" for i in range(1, 9)),
]  # fmt: skip
TOML = [
    "2001-01-01", "2001-01-01T00:00:00Z", "nan", "inf", "-inf", "0x" + "f" * 5000, '"""a\n"""',
    "'\x1b'", "[" * 1500 + "]" * 1500, "{a = 1}", "{a.b.c = 1}", '["a"]', '["a/b", "a/c"]',
    '"\\u202e"', '"\\u001b"', '["../a"]', "1_0", '"a/b"', '"k600-videoflextok"',
]  # fmt: skip
LINES = ["a.b.c = 1", "x = 1", "[[model]]", "[model]", "a." * 3000 + "b = 1"]


def mutate(target: Target, data: bytes, rng: random.Random) -> bytes:
    """`data`, bent in one to four places."""
    if not target.modes:
        return toml(data, rng)
    mode, rest = data[:1], data[1:]
    if rng.random() < 0.05:
        mode = bytes([rng.choice(target.modes)])
    if mode == b"R" and len(rest) > 8:
        return mode + raw_file(rest, rng)
    head, separator, tail = rest.partition(SEPARATOR)
    if separator and rng.random() < 0.5:
        return mode + head + separator + header(tail, rng)
    return mode + header(head, rng) + separator + tail


def raw_file(rest: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(rest[:8], "little")
    if rng.random() < 0.3:
        sizes = [
            0,
            1,
            7,
            size - 1,
            size + 1,
            len(rest) - 8,
            len(rest),
            100_000_000,
            1 << 32,
            1 << 63,
        ]
        return (rng.choice(sizes) % (1 << 64)).to_bytes(8, "little") + rest[8:]
    if rng.random() < 0.2:
        return rest[: rng.randrange(len(rest))]
    head = header(rest[8 : 8 + size], rng)
    return len(head).to_bytes(8, "little") + head + rest[8 + size :]


def header(text: bytes, rng: random.Random) -> bytes:
    """JSON with changes, written again; bytes that are no JSON are changed as bytes."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return bend_bytes(text, rng)
    if not isinstance(tree, dict) or rng.random() < 0.03:
        return bend_bytes(text, rng)
    try:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            bend(tree, rng)
        if rng.random() < 0.5:
            relay(tree)
        return dump(tree).encode("utf-8", "surrogatepass")
    except RecursionError:
        return bend_bytes(text, rng)


def relay(tree: dict[str, Any]) -> None:
    """Offsets that fit the shapes again."""
    start = 0
    for name, entry in tree.items():
        if name != "__metadata__" and isinstance(entry, dict):
            shape, dtype = entry.get("shape"), entry.get("dtype")
            if not isinstance(shape, list) or not all(type(n) is int for n in shape):
                continue
            made = layout({name: shape}, str(dtype))[name]["data_offsets"][1]
            entry["data_offsets"] = [start, start + made]
            start += made


def places(tree: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, (dict, list)):
            places(value, found)
    return found


def bend(tree: Any, rng: random.Random) -> None:
    """One change, anywhere in it."""
    top = list(tree.items()) if isinstance(tree, dict) else []
    meta = tree.get("__metadata__") if isinstance(tree, dict) else None
    if isinstance(meta, dict) and meta and rng.random() < 0.7:
        found = places(meta, [])
    elif top and rng.random() < 0.3:
        found = [(tree, key) for key, _ in top]
    else:
        found = places(tree, [])
    if not found:
        return
    parent, key = rng.choice(found)
    value, way = parent[key], rng.random()
    if isinstance(value, str) and way < 0.8 and (value[:1] in '{["!&' or "\n" in value):
        parent[key] = inner(value, rng)
    elif way < 0.1 and isinstance(parent, dict):
        del parent[key]
    elif way < 0.2 and isinstance(parent, dict):
        parent[rng.choice([*parent, *NAMES])] = parent.pop(key)
    elif way < 0.3 and isinstance(parent, dict):
        parent[f"{key}{AGAIN}"] = copy.deepcopy(rng.choice(VALUES))
    elif way < 0.4 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(rng.choice([value, *VALUES])))
    elif way < 0.5:
        parent[key] = RAW + rng.choice(RAWS)
    elif way < 0.6 and isinstance(value, str):
        parent[key] = rng.choice(TEXTS)
    elif way < 0.75 and type(value) in (int, float):
        parent[key] = rng.choice([value + 1, value - 1, value * 2, value * 1000, -value])
    elif way < 0.85:
        other, place = rng.choice(found)
        parent[key] = copy.deepcopy(other[place])
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))


def inner(text: str, rng: random.Random) -> str:
    """A text that is a document itself: JSON, Python or YAML."""
    tree = read_literal(text)
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return rng.choice(TEXTS) if rng.random() < 0.3 else bend_text(text, rng)
    try:
        for _ in range(rng.choice([1, 1, 2])):
            bend(tree, rng)
        way = rng.random()
        if way < 0.6:
            return dump(tree)
        return repr(tree) if way < 0.8 else yaml.safe_dump(tree, sort_keys=False)
    except (RecursionError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        return rng.choice(TEXTS)


def dump(value: Any) -> str:
    """JSON, with the raw texts as they are and the keys that stand twice."""
    if isinstance(value, str) and value.startswith(RAW):
        return value[len(RAW) :]
    if isinstance(value, dict):
        names = [json.dumps(str(k).removesuffix(AGAIN)) for k in value]
        return "{" + ",".join(f"{k}:{dump(v)}" for k, v in zip(names, value.values())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(dump, value)) + "]"
    try:
        return json.dumps(value, default=str)
    except ValueError:  # an integer of thousands of digits
        return "1"


def bend_text(text: str, rng: random.Random) -> str:
    return bend_bytes(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")


def bend_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, doubled, replaced."""
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    piece = rng.choice(
        [b"", data[at:to] * 2, bytes([rng.randrange(256)]), b"{", b"[" * 50, b'"', b"\xff"]
    )
    return data[:at] + piece + (data[to:] if rng.random() < 0.7 else data[at:])


def toml(data: bytes, rng: random.Random) -> bytes:
    """A line of a catalogue replaced, removed or doubled."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    way = rng.random()
    if way < 0.6 and equals:
        values = [*(json.dumps(v) for v in VALUES), *RAWS, *TOML]
        lines[at] = f"{key}= {rng.choice(values)}"
    elif way < 0.7:
        del lines[at]
    elif way < 0.8:
        lines.insert(at, rng.choice([*lines, *LINES]))
    else:
        return bend_bytes(data, rng)
    return "\n".join(lines).encode("utf-8", "surrogateescape")
