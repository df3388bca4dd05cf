"""Multimodal learning with pretrained language, vision and audio models."""

__version__ = "0.1.0"
