"""A sorting network: which pairs to compare so that the outcomes alone order everything."""

from __future__ import annotations


def sorting_network(n: int) -> list[list[tuple[int, int]]]:
    """Batcher's odd-even merge sort (Batcher 1968) for ``n`` places: stages of comparisons that share no place.

    Args:
        n: places, 1 or more.

    Returns:
        Pairs (i, j), i < j, whose better one goes to i.
    """
    stages = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            stage = [
                (i + j, i + j + k)
                for j in range(k % p, n - k, 2 * k)
                for i in range(min(k, n - j - k))
                if (i + j) // (2 * p) == (i + j + k) // (2 * p)
            ]
            stages.append(stage)
            k //= 2
        p *= 2
    return stages
