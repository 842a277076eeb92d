"""Nearest neighbors and k-means of embeddings, in blocks: never an n x n matrix."""

from ._blocks import squared_distances
from ._kmeans import kmeans
from ._search import kneighbors, mine_neighbors

__all__ = ["kmeans", "kneighbors", "mine_neighbors", "squared_distances"]
