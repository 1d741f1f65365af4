"""Class tables, and how labels are read: read options, label mapping, colors."""
