"""The checks of `mmlab doctor`."""
