"""What keeps one modality from being learned at the expense of the others."""
