"""What a type checker knows of the estimators: mypy reads this file, nobody runs it."""

from typing import assert_type

from sklabel.classification import FixMatchClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import SimCLRTransformer
from sklabel.selection import USLSelector

SimCLRTransformer(0.1, projection_layers=3, lr_scaling="linear", random_state=0)
SimCLRTransformer(temperature="warm")  # type: ignore[arg-type]
SimCLRTransformer(output="head")  # type: ignore[arg-type]
FixMatchClassifier(0.9, calibration_size=0.2, class_weight="balanced")
FixMatchClassifier(class_weight="even")  # type: ignore[arg-type]
SCANClusterer(n_clusters=10, embedder=SimCLRTransformer())
SCANClusterer(n_clusters="ten")  # type: ignore[arg-type]
USLSelector(n_samples=40)

assert_type(SimCLRTransformer().temperature, float)
assert_type(SCANClusterer().n_clusters, int)
