"""Embedding: images or vectors in, vectors that mean something out, without labels."""

from ._simclr import SimCLRTransformer

__all__ = ["SimCLRTransformer"]
