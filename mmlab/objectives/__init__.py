"""Losses as pure functions, each with a thin module that holds its settings."""
