"""Rendered street scenes; `street_scenes` makes the data set, the others paint."""
