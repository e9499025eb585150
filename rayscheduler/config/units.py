"""Sizes, durations and cpus as people write them, into whole bytes, milliseconds and thousandths of a cpu.

Rules of this file: arithmetic is exact (fractions, no floats) and rounds half up, so `74.49GiB` is the
same number of bytes everywhere. A value that is not what it should be raises `Wrong`, which quotes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from rayscheduler.config.values import Plain, Wrong, shown

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_SIZE_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_DURATION_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
Amount = int | Fraction
SIZE_BYTES_MAX = 2**60
DURATION_MS_MAX = 100 * 366 * 24 * 3_600_000
CPUS_MAX = 10**6
WHOLE_MAX = 10**15

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?")
_MEASURE = re.compile(r"(-?[0-9]{1,18}(?:\.[0-9]{1,30})?)([A-Za-z]+)")
_STARTS_LIKE = re.compile(r"\s*-?\s*([0-9]{1,18}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)")


def size_bytes(value: object, *, zero: bool = False) -> int:
    """Whole bytes of `80GiB`, `512MiB`, `1.5GiB` or a whole number; at least 1 unless `zero`."""
    amount: Amount | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
    elif isinstance(value, str):
        amount = int(value) if _WHOLE.fullmatch(value) else _measured(value, _SIZE_UNITS)
    if amount is None:
        raise Wrong(f"{shown(value)} is not a size", f"write for example {likely_size(value)}")
    size = _rounded(amount)
    if size < 0 or (size == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise Wrong(f"{shown(value)} is no memory", f"write a size of {least}, for example {likely_size(value)}")
    if size > SIZE_BYTES_MAX:
        raise Wrong(f"{shown(value)} is more memory than any machine has", "write for example 80GiB")
    return size


def duration_ms(value: object, *, never: bool = False) -> int | None:
    """Milliseconds of `500ms`, `10s`, `5m`, `1h` or a number of seconds. `never` (where allowed) is None."""
    if value == "never":
        if never:
            return None
        raise Wrong("'never' has no meaning here", "write a duration, for example 10s")
    amount = _measured(value, _DURATION_UNITS_MS) if isinstance(value, str) else None
    if amount is None:
        seconds = _number(Plain(value) if isinstance(value, str) else value)
        amount = None if seconds is None else seconds * 1000
    if amount is None:
        also = " or never" if never else ""
        raise Wrong(f"{shown(value)} is not a duration", f"write for example {likely_duration(value)}{also}")
    if amount < 0:
        raise Wrong(f"{shown(value)} is a negative duration", f"write for example {likely_duration(value)}")
    if amount > DURATION_MS_MAX:
        raise Wrong(f"{shown(value)} is longer than a hundred years", "write for example 1h")
    return _rounded(amount)


def millicpus(value: object) -> int:
    """Thousandths of a cpu of a number such as `8` or `0.5`."""
    cpus = _number(value)
    if cpus is None:
        raise Wrong(f"{shown(value)} is not a number of cpus", "write for example 8 or 0.5")
    if not 0 <= cpus <= CPUS_MAX:
        raise Wrong(f"{shown(value)} cpus is out of range", f"write a number from 0 to {CPUS_MAX}, for example 8")
    thousandths = cpus * 1000
    if thousandths.denominator != 1:
        raise Wrong(f"{shown(value)} is finer than a thousandth of a cpu", "write at most three decimals")
    return int(thousandths)


def whole_number(value: object, least: int | None = None, example: str = "1") -> int:
    """A whole number, at least `least`."""
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, Plain) and _WHOLE.fullmatch(value):
        number = int(value)
    if number is None:
        raise Wrong(f"{shown(value)} is not a whole number", f"write for example {example}")
    if least is not None and number < least:
        raise Wrong(f"{shown(value)} is too small", f"write {least} or more, for example {example}")
    if abs(number) > WHOLE_MAX:
        raise Wrong(f"{shown(value)} is too large", f"write for example {example}")
    return number


def positive_number(value: object) -> float:
    """A number above 0, such as a rate."""
    number = _number(value)
    if number is None:
        raise Wrong(f"{shown(value)} is not a number", "write for example 50")
    if not 0 < number <= WHOLE_MAX:
        raise Wrong(f"{shown(value)} is out of range", "write a number above 0, for example 50")
    return float(number)


def size_text(size: int) -> str:
    """`80GiB`, `74.49GiB`: as a file would say it, to two decimals of the largest unit that fits."""
    for unit, factor in reversed(_SIZE_UNITS.items()):
        if abs(size) >= factor:
            return f"{size / factor:.2f}".rstrip("0").rstrip(".") + unit
    return f"{size} bytes"


def _measured(text: str, units: Mapping[str, int]) -> Amount | None:
    """A number and one of the units, in the smallest of them."""
    found = _MEASURE.fullmatch(text)
    if found is None or found.group(2) not in units:
        return None
    return _exact(found.group(1)) * units[found.group(2)]


def _number(value: object) -> Amount | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return Fraction(repr(value)) if math.isfinite(value) else None
    if isinstance(value, Plain) and _NUMBER.fullmatch(value):
        return _exact(value)
    return None


def _exact(digits: str) -> Amount:
    """Whole numbers as ints: most are, and a long scenario has a million of them."""
    return int(digits) if digits.isdigit() else Fraction(str(digits))


def _rounded(amount: Amount) -> int:
    """Half up; most amounts are whole already."""
    if amount.denominator == 1:
        return amount.numerator
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


def likely_size(value: object) -> str:
    """What somebody who wrote `80GB` or `80 gib` meant."""
    found = _STARTS_LIKE.match(value) if isinstance(value, str) else None
    if found is None or not any(c in "123456789" for c in found.group(1)):
        return "80GiB"
    letter = found.group(2)[:1].upper() or "G"
    return f"{found.group(1)}{letter if letter in 'KMGT' else 'G'}iB"


def likely_duration(value: object) -> str:
    """What somebody who wrote `5 min` or `10sec` meant."""
    found = _STARTS_LIKE.match(value) if isinstance(value, str) else None
    if found is None:
        return "10s"
    unit = found.group(2).lower()
    if unit in ("ms", "msec", "millis", "milliseconds"):
        return f"{found.group(1)}ms"
    return f"{found.group(1)}{unit[:1] if unit[:1] in ('s', 'm', 'h') else 's'}"
