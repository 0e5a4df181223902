"""Names and numbers of things, as text that any page shows."""

from __future__ import annotations


def shown(name: str) -> str:
    """A name with escapes for bytes that are no characters, and for characters that are invisible."""
    return "".join(character if character.isprintable() else _escape(character) for character in name)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as `os.fsdecode` gives it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def counted(number: int, noun: str) -> str:
    """A number of things: 1 recording, 2 recordings."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
