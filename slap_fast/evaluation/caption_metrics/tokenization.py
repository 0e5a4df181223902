"""Tokenization of captions for their metrics: lower case, Penn Treebank words, no punctuation, as in coco-caption.

coco-caption runs the `PTBTokenizer` of Stanford CoreNLP 3.4.1, in Java. These are the rules that captions need, in
Python, so that a score does not depend on whether the machine has Java. Differences remain in rare abbreviations, web
addresses, emoticons, markup, and where punctuation joins words without a space ("mid-air.then").
"""

from __future__ import annotations

import re

_PUNCTUATION = frozenset(("''", "'", "``", "`", '"', "?", "!", ",", ":", ";"))
"""Left out, as runs of periods and hyphens are. coco-caption keeps brackets, as -lrb- and the like, and "!!!"."""

_TYPOGRAPHIC = str.maketrans(
    {"\u2026": "...", "\u2013": "--", "\u2014": "--", "\u201c": '"', "\u201d": '"', "\u2018": " ` ", "\u2019": "'"}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_CONTRACTED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|mt|vs|etc|jr|sr|col|gen|lt|sgt|rev|hon|capt|inc|corp|co|ltd|ave|blvd|rd|ft|ph\\.d"
    "|jan|feb|mar|apr|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri"
)
_LETTER = "[^\\W\\d_]"
_WORD = "[^\\W_]"
_TOKEN = re.compile(
    rf"""
      \S+@\S+\.\w+ | https?://\S+ | www\.\S+                       # addresses
    | '(?:tis|twas|cause|em)\b | '\d\ds\b | 'n'                   # 'tis, '90s, rock 'n' roll
    | (?:[a-z]\.)+(?:[a-z]\b)?(?!{_WORD})                         # u.s., a.m., the initial of a name
    | (?:{_ABBREVIATIONS})\.(?!{_WORD}) | no\.(?=\s*\d)
    | (?:ma'am|c'mon)\b
    | [a-z]+(?=n't\b)                                              # do, of "don't"
    | n't\b | '(?:s|m|d|re|ve|ll|n)\b
    | (?:o'{_LETTER}{{2,}}|d'ye)\b | y'(?={_LETTER})               # o'clock, y'all
    | (?<![\w-])[-+]?\.?\d(?:[\d.,:/-]*\d)?{_WORD}*             # 1,000  3:30  10-15  60mph
    | (?:\#(?!\d)|@)?{_WORD}+(?:(?:[-_/]{_WORD}+)+|(?:\.{_WORD}+)*)  # high-pitched  water/sink
    | \.+ | [!?]+ | --+ | `` | '' | \S
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """The lower-case words of a caption, without punctuation; none for a caption of punctuation alone.

    >>> tokenize("A man's dog doesn't bark (twice).")
    ['a', 'man', "'s", 'dog', 'does', "n't", 'bark', '-lrb-', 'twice', '-rrb-']
    """
    words: list[str] = []
    for match in _TOKEN.finditer(caption.translate(_TYPOGRAPHIC).lower()):
        token = match.group()
        words += _CONTRACTED.get(token) or (_BRACKETS.get(token, token),)
    return [word for word in words if word.strip(".-") and word not in _PUNCTUATION]
