"""Kernels for the CPU: NumPy in pieces that stay in the cache, several pieces at a time.

What makes them fast, in the order of what it brings:
  - threads: NumPy's functions let go of Python's interpreter lock while they compute, so two threads that each work on
    half of the rows need half of the time, as long as a piece is large enough to pay for handing it over (threads.py);
  - matrix products on one thread each, split here, where that beats the library's own threads, which also spin for
    milliseconds after every product and so take the core from whatever comes next (products.py);
  - few calls, and few arrays that are written afresh: after a product neither is in the cache any more;
  - pieces that fit into the cache: the second pass over a piece finds it there (pieces.py);
  - half of causal attention is not computed at all (attention.py).
"""

from .activation import GELUTanh
from .attention import Attention
from .dropout import Dropout
from .losses import CrossEntropy
from .normalization import LayerNorm
from .pieces import RowByRow, in_pieces, in_whole, squared_norm
from .products import Linear, MatMul
from .threads import get_num_threads, set_num_threads

__all__ = [
    "Attention",
    "CrossEntropy",
    "Dropout",
    "GELUTanh",
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
