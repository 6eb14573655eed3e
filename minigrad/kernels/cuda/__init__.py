"""Kernels for NVIDIA cards: small .cu files, each with the reference formula at its head (launch.py compiles them).

Arrays hold float32, float16 or bfloat16; every kernel computes in float32. Sums are added up in an order that does not
depend on which block comes first, so that the same call gives the same bits.
"""

from .activation import GELU
from .attention import FlashAttention
from .batched_attention import BatchedAttention
from .dropout import Dropout
from .embedding import Embedding
from .losses import CrossEntropy
from .normalization import LayerNorm
from .products import Linear, MatMul
from .softmax import Softmax

__all__ = [
    "GELU",
    "BatchedAttention",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "FlashAttention",
    "LayerNorm",
    "Linear",
    "MatMul",
    "Softmax",
]
