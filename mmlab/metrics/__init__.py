"""Metrics that are exact under any number of ranks."""
