"""Where the axes of plots have their round numbers, and how these are written."""

import math
from collections.abc import Sequence

NICE = (1.0, 2.0, 5.0)


def nice_ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """Return about `count` round numbers, evenly spaced, that enclose all values (finite ones)."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rough = max(high - low, 1e-3 * max(1.0, abs(high))) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (*NICE, 10.0) if power * nice >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write evenly spaced ticks with the same number of decimals, as few as tell them apart."""
    if len(ticks) < 2:
        return [f"{tick:g}" for tick in ticks]
    gap, most = ticks[1] - ticks[0], max(map(abs, ticks))
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    if digits <= 4 and most < 1e6:
        form = f"z,.{digits}f"
    else:  # as many significant digits as the largest needs to differ by a gap
        form = f".{math.floor(math.log10(most)) - math.floor(math.log10(gap) + 1e-9) + 1}g"
    return [f"{tick:{form}}".replace("-", "\N{MINUS SIGN}", 1) for tick in ticks]
