"""From datasets to batches: sampler, augmentation, cache, and both input paths."""
