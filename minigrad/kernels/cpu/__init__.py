"""Kernels for the CPU: NumPy on pieces of arrays that fit into the cache, several pieces at a time.

What makes them fast, the most important first:
  - Threads. NumPy releases Python's interpreter lock while it computes, so two threads that each work on half of the
    rows need half of the time, as long as a piece is large enough to justify handing it over (threads.py).
  - Matrix products that run on one thread each and are split here, where that is faster than the library's own threads.
    Those also spin for milliseconds after every product and so take the core from the work that follows (products.py).
  - Few calls and few new arrays: after a matrix product, neither their code nor their memory is in the cache any more.
  - Pieces that fit into the cache: a second pass over a piece finds it there (pieces.py).
  - The masked half of causal attention is not computed at all (attention.py).
"""

from .activation import GELUTanh
from .attention import Attention
from .dropout import Dropout
from .losses import CrossEntropy
from .normalization import LayerNorm
from .pieces import ImageByImage, RowByRow, in_pieces, in_whole, squared_norm
from .products import Linear, MatMul
from .threads import get_num_threads, set_num_threads

__all__ = [
    "Attention",
    "CrossEntropy",
    "Dropout",
    "GELUTanh",
    "ImageByImage",
    "LayerNorm",
    "Linear",
    "MatMul",
    "RowByRow",
    "get_num_threads",
    "in_pieces",
    "in_whole",
    "set_num_threads",
    "squared_norm",
]
