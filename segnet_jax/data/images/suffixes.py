"""File name suffixes of images, in datasets and as inputs of `predict`."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp")
"""Lower case; `decode.read_image` reads each of them, by the file's content."""
