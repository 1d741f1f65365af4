"""Names of flags."""


def option_of(name: str) -> str:
    """Return the name of a field's flag, such as --image-size."""
    return "--" + name.replace("_", "-")
