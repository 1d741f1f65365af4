"""The error that is the user's to mend, told in one line and without a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: the message says what is wrong, what was given and what to do.

    Every command prints it as one line and exits with code 2. Faults of our own stay ordinary exceptions.
    """
