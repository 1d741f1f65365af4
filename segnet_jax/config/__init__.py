"""The config of a training: its fields, files, flags, and the protocols that ship with the package."""
