"""Folder layouts, and the pairs of image and label that each finds."""
