"""philox.cuh in NumPy, and the dropout that flash_attention.cu makes with it. Both give the same bits as a card."""

from __future__ import annotations

from typing import Any

import numpy as np


def philox(counter: Any, key: Any) -> np.ndarray:
    """Philox4x32-10 of counters (4, …) and a key (2,), broadcasting: four words (4, …), uint32."""
    x = np.stack(np.broadcast_arrays(*[np.asarray(word, np.uint64) for word in counter]))
    keys = [int(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = np.stack(
            [
                second >> np.uint64(32) ^ x[1] ^ np.uint64(keys[0]),
                second & low,
                first >> np.uint64(32) ^ x[3] ^ np.uint64(keys[1]),
                first & low,
            ]
        )
        keys = [keys[0] + 0x9E3779B9 & 0xFFFFFFFF, keys[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return x.astype(np.uint32)


def attention_mask(dropout: Any, shape: tuple[int, int, int, int], earlier: int = 0) -> tuple[np.ndarray, np.float32]:
    """Which attention weights (B, H, T, U) flash attention keeps, and the factor of those, for a `draw_dropout`.

    Queries i and i + 8 of every 16, and keys j, j + 1, j + 8 and j + 9, share a call: counter (row, column, draw),
    where row and column count these queries, through all heads, and keys, and draw is two words. The call's words
    belong to (i, j), (i, j + 8), (i + 8, j) and (i + 8, j + 8), the lower halves to j.
    """
    B, H, T, U = shape
    head, i, j = np.arange(B * H)[:, None, None], np.arange(T)[:, None], np.arange(U)
    row, column = head * (-(-T // 16) * 8) + i // 16 * 8 + i % 8, j // 16 * 4 + j % 8 // 2
    seed, draw = int(dropout["seed"][0]), int(dropout["draw"][0]) + earlier
    words = philox((row, column, draw & 0xFFFFFFFF, draw >> 32), (seed & 0xFFFFFFFF, seed >> 32))
    word = np.choose(i // 8 % 2 * 2 + j // 8 % 2, words)  # (BH, T, U)
    bits = word >> (j % 2 * 16).astype(np.uint32) & 0xFFFF
    return (bits >= dropout["dropped"][0]).reshape(shape), dropout["factor"][0]
