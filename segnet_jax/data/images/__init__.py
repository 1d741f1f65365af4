"""Image files: what their bytes and headers say, decoding, and resizing to one size."""
