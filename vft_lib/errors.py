"""Problems a user can fix. The command line prints them as one line and exits with 2."""

LONGEST = 1000  # characters of a message


class VftError(ValueError):
    """A problem a user can fix: the message gives the reason and the remedy in one line.

    File names and what files hold may be quoted in it as they are: a character that cannot be
    printed (a line break, a terminal's escape) becomes a question mark, and of an endless one the
    middle is left out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """`text` as a line of bounded length that does nothing to a terminal."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else "?" for c in text)


class ConfigError(VftError):
    """A config that does not describe a model we can build."""


class CheckpointError(VftError):
    """A weight file that is damaged, incomplete or of another format."""


class TokenFileError(VftError):
    """A token file that is damaged, of a newer version, or from another tokenizer."""
