"""The data path: sample order, shards, the stream of batches, one reader for each modality."""
