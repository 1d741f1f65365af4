"""The training config: fields, files, flags, and the protocols shipped with the package."""
