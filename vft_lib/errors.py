"""Problems a user can fix. The command line prints them as one line and exits with 2."""

import unicodedata

MAX_MESSAGE = 1000  # characters: a path and a reason


def printable(text: str) -> bool:
    """Whether a terminal shows `text` as it stands: no control characters (an escape sequence may
    rewrite the screen), no half surrogates, nothing that turns the direction of writing."""
    return text.isprintable() or all(
        c.isprintable() or unicodedata.category(c) == "Zs" for c in text
    )


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """`text` fit for a terminal, whoever wrote it: line breaks are spaces, what is not printable
    is spelled out (`\\x1b`), and what is too long loses its middle."""
    text = " ".join(_cut(text, limit).splitlines())
    text = "".join(c if printable(c) else repr(c)[1:-1] for c in text)
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    side = limit // 2 - 2
    return text if len(text) <= limit else f"{text[:side]} … {text[-side:]}"


class VftError(ValueError):
    """A problem a user can fix: the message gives the reason and the remedy in one line. What
    stands in it may come from a file of a stranger's, so it is made fit for a terminal here."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class ConfigError(VftError):
    """A config that does not describe a model we can build."""


class CheckpointError(VftError):
    """A weight file that is damaged, incomplete or of another format."""


class TokenFileError(VftError):
    """A token file that is damaged, of a newer version, or from another tokenizer."""
