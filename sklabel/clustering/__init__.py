"""Clustering: images into groups without one label."""

from ._dcec import DCECClusterer
from ._scan import SCANClusterer

__all__ = ["DCECClusterer", "SCANClusterer"]
