"""What errors of other libraries say, as a part of a message of one line."""


def one_line(said: object) -> str:
    """Return the text of an error, or another, in one line of at most 200 characters."""
    return " ".join(str(said).split())[:200]
