"""What the estimators of one task share."""
