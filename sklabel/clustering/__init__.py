"""Clustering: images into groups without one label."""

from ._scan import SCANClusterer

__all__ = ["SCANClusterer"]
