"""The engine: what all methods share. Private."""
