"""Write power_table.inc: powers rounded correctly by mpmath at 2000 bits, which test_power.cpp compares with.

    python make_power_table.py > power_table.inc

Powers below 1e-290 are left out, and those so near the midpoint of two float64 values that the double-double arithmetic
of power.hpp cannot decide them (within 2^-16 of their last place).
"""

from __future__ import annotations

import random

import mpmath

mpmath.mp.prec = 2000

BASES = [0.9, 0.999, 0.98, 0.92, 0.99, 0.95, 0.96, 0.5, 0.25, 0.1, 0.3, 1e-3, 1e-8, 0.9999, 0.99999]
BASES += [1 - 2.0**-k for k in (20, 30, 40, 52, 53)]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 10, 16, 33, 100, 127, 255, 1000, 4097, 10**5, 10**6, 2**31, 10**12, 2**53 + 1, 2**62]


def rounded(base: float, exponent: float) -> float | None:
    exact = mpmath.mpf(base) ** mpmath.mpf(exponent)
    if exact < mpmath.mpf("1e-290") or exact > mpmath.mpf("1e308"):
        return None
    significand, _ = mpmath.frexp(exact)
    places = significand * 2**53
    if abs(places - mpmath.floor(places) - 0.5) < 2.0**-16:
        return None
    scaled = int(mpmath.nint(places))
    return float(mpmath.ldexp(mpmath.mpf(scaled), int(mpmath.frexp(exact)[1]) - 53))


def integer_cases(rng: random.Random) -> list[tuple[float, int]]:
    cases = [(base, count) for base in BASES for count in COUNTS]
    for _ in range(120):
        count = rng.randrange(1, 2 ** rng.randrange(2, 62))
        cases.append((float(mpmath.exp(-mpmath.mpf(rng.uniform(0, 600)) / count)), count))
    return [case for case in cases if 0 < case[0] < 1]


def real_cases(rng: random.Random) -> list[tuple[float, float]]:
    cases = [(0.96, t * 4e-3) for t in (1, 2, 3, 10, 99, 1000, 12345, 10**5, 10**6)]
    cases += [(1 + 1e-4 * 1e-2 * t, 0.75) for t in (1, 2, 3, 10, 99, 1000, 12345, 10**6, 10**9)]
    cases += [(base, y) for base in (2.0, 0.5, 10.0, 1e-300, 1e300, 0.1) for y in (0.5, -0.5, 1.0, 0.75, 1e-17, -1e-3)]
    cases += [(2.0, y) for y in (1023.0, 1023.5, 1022.9, -960.0, 52.5, -1.0)]
    for _ in range(150):
        cases.append((rng.uniform(1e-3, 1e3), rng.uniform(-30, 30)))
    for _ in range(60):
        base = 1 + rng.uniform(-1, 1) * 2.0 ** -rng.randrange(1, 52)
        cases.append((base, rng.uniform(0, 1) * 2.0 ** rng.randrange(1, 40)))
    return cases


def main() -> None:
    rng = random.Random(1)
    print("// Made by make_power_table.py: base, exponent, the float64 nearest to the power.")
    for kind, cases in (("integer", integer_cases(rng)), ("real", real_cases(rng))):
        print(f"constexpr Power{kind.capitalize()} {kind}_powers[] = {{")
        for base, exponent in cases:
            value = rounded(base, exponent)
            if value is None:
                continue
            text = str(exponent) if kind == "integer" else exponent.hex()
            print(f"    {{{base.hex()}, {text}, {value.hex()}}},")
        print("};")


if __name__ == "__main__":
    main()
