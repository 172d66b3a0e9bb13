"""What is said to the user when something cannot go on: what came, what was expected, the remedy."""


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line `error: ...` and exits with 2."""


def count(items, noun: str) -> str:
    """`3 voxels (4, 17, 33)`, the first ten by name."""
    noun = {"stimulus": "stimuli"}.get(noun, noun + "s") if len(items) != 1 else noun
    more = f", and {len(items) - 10} more" if len(items) > 10 else ""
    return f"{len(items)} {noun} ({', '.join(map(str, items[:10]))}{more})"
