"""Student's t distribution by the continued fraction of the incomplete beta function; needs no library.

Source: Press et al., Numerical Recipes, 3rd edition, section 6.4 (Lentz's method).
"""

import math

__all__ = ["t_quantile", "two_sided_p"]

_STEPS = 400
_TINY = 1e-300


def two_sided_p(t: float, freedom: int) -> float:
    """The chance of a value at least as far from 0 as `t`, which may be infinite, where there is no difference.

    `freedom` are degrees, 1 or more; ValueError for none.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom must be 1 or more")
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(confidence: float, freedom: int) -> float:
    """The half-width, in standard errors, of an interval of this confidence (0.95): t with `confidence` inside ±t."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if two_sided_p(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), x in 0..1."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side converges faster
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
