"""The one exception whose message is meant for the user's eyes: what came, what was expected, the remedy."""


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line `error: ...` and exits with 2."""
