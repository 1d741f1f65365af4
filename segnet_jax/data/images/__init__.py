"""Image files: bytes, headers, decoding, and resizing."""
