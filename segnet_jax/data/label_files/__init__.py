"""Label files and class tables: decoding them, and finding out what their values mean."""
