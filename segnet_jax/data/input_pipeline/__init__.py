"""From data sets to batches: the sampler, augmentation, the cache, and both input paths."""
