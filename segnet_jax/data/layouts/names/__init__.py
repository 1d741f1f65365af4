"""Names and lists of files: which image belongs to which label and which split."""
