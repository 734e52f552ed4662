"""The rule that widths of heads keep."""

__all__ = ["check_head_dim"]


def check_head_dim(dim: int, head_dim: int) -> None:
    """Refuse a width of heads that does not divide the channels.

    Raises:
        ValueError: naming the nearest that does.
    """
    if head_dim < 1 or dim % head_dim:
        nearest = min((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: abs(n - head_dim))
        raise ValueError(f"head_dim {head_dim} does not divide dim {dim}; the nearest that does is {nearest}")
