"""Match images with labels and splits, by file names and lists."""
