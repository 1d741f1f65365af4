"""One module per weight format, which maps the format's tensor names to a VGG's."""
