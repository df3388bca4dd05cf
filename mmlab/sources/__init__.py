"""Public data sets: their released format in, WebDataset shards out."""
