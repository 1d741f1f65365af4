"""One module for each format of weights: its names of tensors, and what they are in a VGG."""
