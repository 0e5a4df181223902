"""Queries of a location: one or more texts, each once."""

from __future__ import annotations

from collections.abc import Sequence


def checked_queries(queries: Sequence[str]) -> list[str]:
    """
    Raises:
        ValueError: no query, an empty one, the same one twice, or one that is not valid Unicode.
    """
    if not queries:
        raise ValueError("no query; give at least one text")
    for position, query in enumerate(queries):
        if not query.strip():
            raise ValueError("a query is empty; give a text, such as 'a siren'")
        if any("\ud800" <= letter <= "\udfff" for letter in query):
            raise ValueError(f"the query {query[:40]!r} is not valid Unicode; type it in the encoding of the terminal")
        if query in queries[:position]:
            raise ValueError(f"the query {query!r} is given twice; give it once")
    return list(queries)
