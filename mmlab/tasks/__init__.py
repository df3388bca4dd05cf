"""Tasks: one base that owns every step, one leaf for each task."""
