"""Names, lists and pairs of files: which image belongs to which label and which split."""
