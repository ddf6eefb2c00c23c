#!/usr/bin/env python3
"""Compares two answers of `ichd analyze --json`: the same words, and every number within 1e-3. Times are left out.

Usage: same_scores.py HERE.json THERE.json
"""

import json
import sys

TOLERANCE = 1e-3
TIMES = {"ms", "startup_ms"}


def compare(a, b, path: str, gaps: list[float]) -> list[str]:
    """What differs, in words; the gaps between numbers are added to `gaps`."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = (a.keys() | b.keys()) - TIMES
        return [word for key in sorted(keys) for word in compare(a.get(key), b.get(key), f"{path}.{key}", gaps)]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [word for n, (x, y) in enumerate(zip(a, b)) for word in compare(x, y, f"{path}[{n}]", gaps)]
    if isinstance(a, float) and isinstance(b, float):
        gaps.append(abs(a - b))
        return [f"{path}: {a} and {b}"] if gaps[-1] > TOLERANCE else []
    return [] if a == b else [f"{path}: {a} and {b}"]


def main() -> int:
    here, there = ([json.loads(line) for line in open(path)] for path in sys.argv[1:3])
    gaps: list[float] = []
    wrong = compare(here, there, "", gaps)
    print("\n".join(wrong) or f"{len(here)} series, {len(gaps)} numbers, the greatest difference {max(gaps):.1e}")
    return 1 if wrong or not gaps else 0


if __name__ == "__main__":
    sys.exit(main())
