"""File name suffixes of images, in datasets and as inputs of `predict`."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp")
"""In lower case; `decode.read_image` determines the format by the file's content."""
