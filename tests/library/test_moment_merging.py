"""Moments from scored windows: properties of the results, for any windows."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from slap_fast.library.moment_merging import ScoredWindow, growth_limit, merge_windows


@st.composite
def scored_windows(draw: st.DrawFn) -> list[ScoredWindow]:
    """Recordings with windows every 5 s, a last one at any time, and wholes; scores with many ties."""
    windows: list[ScoredWindow] = []
    for recording in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 30))
        spans = [(5.0 * k, 5.0 * k + 10.0, False) for k in range(count)]
        end = spans[-1][1] + draw(st.floats(0.0, 4.9))
        spans.append((end - 10.0, end, False))
        if draw(st.booleans()):
            spans.append((0.0, end, True))
        for span in spans:
            score = draw(st.sampled_from([-0.5, 0.0, 0.1, 0.45, 0.46, 0.5, 0.51, 0.9]))
            windows.append(ScoredWindow(len(windows), recording, *span, score))
    return windows


def neighbors(windows: list[ScoredWindow]) -> Callable[[int, float, float], list[ScoredWindow]]:
    return lambda recording, start, end: [
        window for window in windows if window.recording == recording and window.start < end and window.end > start
    ]


def best_first(windows: list[ScoredWindow]) -> list[ScoredWindow]:
    return sorted(windows, key=lambda window: (-window.score, window.id))


@given(scored_windows(), st.booleans())
def test_moments_cover_every_window_once_and_are_as_long_as_the_rule_says(
    windows: list[ScoredWindow], reverse: bool
) -> None:
    near = neighbors(windows[::-1] if reverse else windows)
    spans = list(merge_windows(best_first(windows), near))
    assert [span.best.score for span in spans] == sorted((span.best.score for span in spans), reverse=True)
    for number, span in enumerate(spans):
        assert span.start <= span.best.start < span.best.end <= span.end
        earlier = [other for other in spans[:number] if other.best.recording == span.best.recording]
        assert all(span.end <= other.start or span.start >= other.end for other in earlier)
        if span.best.whole:
            continue
        # It grew over every window that it might, and over nothing else: each end is that of such a window.
        allowed = [
            window
            for window in near(span.best.recording, span.start, span.end)
            if not window.whole
            and window.score >= growth_limit(span.best.score)
            and all(window.end <= other.start or window.start >= other.end for other in earlier)
        ]
        assert span.start == min([span.best.start, *(window.start for window in allowed)])
        assert span.end == max([span.best.end, *(window.end for window in allowed)])
    for window in windows:
        assert any(
            span.best.recording == window.recording and span.start < window.end and span.end > window.start
            for span in spans
        )


def test_a_sound_of_hours_is_one_moment() -> None:
    windows = [ScoredWindow(k, 0, 5.0 * k, 5.0 * k + 10.0, False, 0.5 + 1e-6 * (k % 7)) for k in range(7200)]
    (span,) = merge_windows(best_first(windows), neighbors(windows))
    assert (span.start, span.end) == (0.0, 36_005.0)


def test_moments_of_negative_scores_grow_as_those_of_positive_ones_do() -> None:
    for best, inside, outside in ((0.5, 0.46, 0.44), (-0.5, -0.54, -0.56), (0.0, 0.0, -0.01)):
        windows = [
            ScoredWindow(number, 0, 5.0 * number, 5.0 * number + 10.0, False, score)
            for number, score in enumerate([inside, best, inside, outside])
        ]
        assert [(span.start, span.end) for span in merge_windows(best_first(windows), neighbors(windows))] == [(0, 20)]


def test_nothing_is_listed_where_it_is_taken() -> None:
    windows = [ScoredWindow(k, 0, 10.0 * k, 10.0 * k + 10.0, False, 0.5) for k in range(4)]
    spans = list(merge_windows(windows, neighbors(windows), taken=[(0, 10.0, 20.0), (1, 0.0, 40.0)]))
    assert [(span.start, span.end) for span in spans] == [(0.0, 10.0), (20.0, 30.0), (30.0, 40.0)]
