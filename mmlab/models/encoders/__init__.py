"""Encoders: rows of one modality in, token features and their mask out."""
