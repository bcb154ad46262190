"""How a share is said: rounded down, so that what falls short of a limit never looks like it.

    0.98996 of requests within target, 0.99 wanted ─▶ "98.99 %", not "99.00 %"
    0.56756 and 0.43244 of requests by two models  ─▶ "56.8 %" and "43.2 %", all of which is 100 %

The one rule: of what has a limit, 100 % is all.
"""

from __future__ import annotations

import math

ROUNDING = 1e-9  # of a double: 0.995 is no less than 99.5 %


def percent(share: float) -> str:
    """To two digits.

    >>> percent(0.98996), percent(0.99999), percent(0.995), percent(1.0)
    ('98.99 %', '99.99 %', '99.5 %', '100 %')
    """
    return f"{math.floor(share * 1e4 + ROUNDING) / 1e2:g} %"


def part(share: float) -> str:
    """Of a mix, to one digit.

    >>> part(0.56756), part(0.43244)
    ('56.8 %', '43.2 %')
    """
    return f"{100.0 * share:.1f} %"
