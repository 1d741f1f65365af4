"""Class tables, and read options, mappings and colors of labels."""
