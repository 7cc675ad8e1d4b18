"""The one error type for input a person can mend."""


class InputError(ValueError):
    """Bad input: a file, a config value or a set of weights that a person has to mend.

    The message names the file or key, the value found, and what to do about it. The command line prints
    it without a traceback and exits with status 2.
    """
