"""Folder layouts and the image-label pairs in them."""
