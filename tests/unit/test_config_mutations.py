"""300 damaged configurations: each is refused in one line or is an experiment, in bounded memory and time.

Run as a program, this file prints the outcomes as JSON, with limits on memory and time.  The test runs it.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("config/config.yaml", "config/experiments/demo.yaml", "tests/workflow/tiny.yaml")
COUNT = 300
MEMORY, SECONDS = 2**30, 120

VALUES = (
    *(".nan", ".inf", "-.inf", "1e999", "1e-400", "-0.0", "-1", "0", "1", "0.5", "1.0", "1.5", "1e300"),
    *("9" * 400, "9" * 5000, "-" + "9" * 18, "100000000000", "010", "1:30", "0x1f", "1_000", "\u0660.\u0665", "1 2"),
    *("", "null", "true", "no", "text", "'1'", "2001-01-01", "$(touch x)", '"\\uD800"', '"\\UFFFFFFFF"', '"a\\nb"'),
    *("[]", "{}", "[1, 2]", "{a: b}", "[0.9, 0.9]", "[.nan, 0.9]", "{steps: 5}", "[skip, skip]", "[a, [b, [c]]]"),
    *("[" * 3000, "{a: " * 3000, "[" * 50 + "]" * 50, "*a", "&a [*a]", "!!python/object/apply:os.system ['touch x']"),
    *("(sf)x999999999", "(sf)x" + "9" * 5000, "s" * 5000, "(s)x0", "s04", "cuda:99999", "target_0.50", "@", "|", "- x"),
)


def flip(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """One to three bits, anywhere."""
    text = bytearray(b"".join(lines))
    for _ in range(rng.randint(1, 3)):
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return [bytes(text)]


def cut(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """The end is missing."""
    text = b"".join(lines)
    return [text[: rng.randrange(len(text))]]


def drop(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """A line is missing."""
    at = rng.randrange(len(lines))
    return lines[:at] + lines[at + 1 :]


def repeat(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """Some lines are repeated."""
    start = rng.randrange(len(lines))
    part = lines[start : start + rng.randint(1, 9)]
    return lines + part if rng.random() < 0.5 else lines[:start] + part + lines[start:]


def move(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """A line has another indentation, of a tab or spaces."""
    at = rng.randrange(len(lines))
    line = rng.choice([b"\t" + lines[at], b"  " + lines[at], lines[at].lstrip()])
    return [*lines[:at], line, *lines[at + 1 :]]


def rename(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """A key has one more character."""
    at = rng.choice([i for i, line in enumerate(lines) if b":" in line and not line.startswith(b"#")])
    key, colon, rest = lines[at].partition(b":")
    extra = rng.choice([b"x", b".", b"\xc3\xa4", b"\x7f", b" ", b"?", b"'"])
    return [*lines[:at], key + extra + colon + rest, *lines[at + 1 :]]


def replace(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """A key has another value."""
    at = rng.choice([i for i, line in enumerate(lines) if b": " in line and not line.startswith(b"#")])
    key = lines[at].partition(b":")[0]
    return [*lines[:at], key + b": " + rng.choice(VALUES).encode() + b"\n", *lines[at + 1 :]]


def insert(rng: random.Random, lines: list[bytes]) -> list[bytes]:
    """A line has other bytes or text before it."""
    at = rng.randrange(len(lines))
    extra = rng.choice([b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"---\n", b"%YAML 9.9\n", b"[" * 2000, b"<<: {a: 1}\n"])
    return [*lines[:at], extra, *lines[at:]]


CHANGES: tuple[Callable[[random.Random, list[bytes]], list[bytes]], ...] = (
    *(flip, cut, drop, repeat, move, rename, insert),
    *(replace, replace, replace),
)


def outcomes(folder: Path) -> list[dict]:
    """The outcome of every mutant: an experiment, a refusal (UserError), or a crash (another exception)."""
    from planer.config import Experiment
    from planer.config.strict_yaml import read_yaml
    from planer.errors import UserError
    from planer.parsing import build, merge

    sound = {name: read_yaml(ROOT / name) for name in FILES}
    found = []
    for number in range(COUNT):
        rng = random.Random(number)
        change, name = CHANGES[number % len(CHANGES)], FILES[number // len(CHANGES) % len(FILES)]
        path = folder / "mutant.yaml"
        path.write_bytes(b"".join(change(rng, (ROOT / name).read_bytes().splitlines(keepends=True))))
        result = {"mutant": f"{number}: {change.__name__} {name}", "kind": "experiment", "text": ""}
        try:
            mutant = read_yaml(path)
            layers = [mutant, sound[FILES[1]]] if name == FILES[0] else [sound[FILES[0]], mutant]
            experiment = build(Experiment, merge(*layers))
            for pattern in vars(experiment.patterns).values():
                assert experiment.model.architecture(256, pattern).params() > 0
        except UserError as error:
            result |= {"kind": "refusal", "text": str(error)}
        except BaseException as error:
            result |= {"kind": "crash", "text": f"{type(error).__name__}: {error}"[:500]}
        found.append(result)
    return found


def test_a_damaged_configuration_is_refused_or_an_experiment(tmp_path):
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="backslashreplace")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == COUNT
    assert [result for result in found if result["kind"] == "crash"] == []
    for result in found:
        text = result["text"]
        if result["kind"] == "refusal":
            assert text.isprintable() and len(text) < 600, result
            assert text.startswith("config: ") or "mutant.yaml" in text, result
    kinds = [result["kind"] for result in found]
    assert kinds.count("refusal") > COUNT / 2 and kinds.count("experiment") > COUNT / 10
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(outcomes(Path(scratch))))
