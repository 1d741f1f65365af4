"""CamVid: archives, split rules, and prepared TFDS files."""
