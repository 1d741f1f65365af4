"""The steps compiled for devices that are not present, and what the compiled programs say."""
