"""Kernels for NVIDIA cards: small .cu files, each with the reference formula at its head."""

from .normalization import LayerNorm

__all__ = ["LayerNorm"]
