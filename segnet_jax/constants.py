"""The one number that every room shares."""

VOID = 255
"""The class id of pixels that carry no label; readers turn a data set's own void id into it."""
