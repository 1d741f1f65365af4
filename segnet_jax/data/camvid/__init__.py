"""CamVid: its archives, its split rules, and the prepared records."""
