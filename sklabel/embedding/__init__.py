"""Embedding: from images or vectors to feature vectors, without labels."""

from ._autoencoder import AutoencoderTransformer
from ._byol import BYOLTransformer
from ._cld import CLDTransformer
from ._clip import CLIPTransformer
from ._moco import MoCoTransformer
from ._pretrained import PretrainedTransformer
from ._simclr import SimCLRTransformer
from ._swav import SwAVTransformer

__all__ = [
    "AutoencoderTransformer",
    "BYOLTransformer",
    "CLDTransformer",
    "CLIPTransformer",
    "MoCoTransformer",
    "PretrainedTransformer",
    "SimCLRTransformer",
    "SwAVTransformer",
]
