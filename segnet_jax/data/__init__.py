"""What lies on disk, as data sets and batches."""
