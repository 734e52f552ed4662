"""The rule that numbers and widths of heads keep: they divide the channels."""

__all__ = ["check_head_dim", "nearest_divisor"]


def check_head_dim(dim: int, head_dim: int) -> None:
    """Raise ValueError for a width of heads that does not divide the channels, naming the nearest that does."""
    if head_dim < 1 or dim % head_dim:
        nearest = nearest_divisor(dim, head_dim)
        raise ValueError(f"head_dim {head_dim} does not divide dim {dim}; the nearest that does is {nearest}")


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to what was wanted; of two the smaller."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))
