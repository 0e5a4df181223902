"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap, and tokens against the Java tokenizer that it runs."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from slap_fast.evaluation.caption_metrics import CaptionMetricsError, caption_metrics, tokenize
from slap_fast.evaluation.caption_metrics.ngrams import bleu, bleu_counts, cider_d, rouge_l

CAPTIONS = """
A dog barks, and a man's voice is heard in the distance.
People don't talk; they can't, won't, and shouldn't've.
A high-pitched beep (very loud) plays 3 times at 3:30 p.m.
Water/sink running -- then stops...
"Hello," she said. 'Goodbye' he said.
Someone cannot hear, is gonna shout, wanna go, gotta run
The U.S. Navy ship's horn blares. Mr. Smith speaks
A 1,000 hz tone at 5.5 kHz & 50% volume
rock 'n' roll music plays, e.g. on the radio, etc.
the dogs' barking at 5 o'clock, 'twas nice, y'all
A bell rings\u2026 then \u2013 another \u2014 one
caf\u00e9 \u201cmusic\u201d plays \u2018softly\u2019
beep beep beep!!! what??
vroom,vroom $5 bill, no. 5, and the sun.
1st 2nd 90's '90s 1990s 10-15 times, ma'am, c'mon, 'cause
ding-dong , ding - dong, walk -walk walk- ing
a/c unit hums w/o noise hmm... ok...
A train horn blows as the train approaches .
it's they've she'd we'll I'm you're St. John's
""".strip().splitlines()


def captions_of(generator: random.Random, words: list[str], count: int) -> list[str]:
    return [" ".join(generator.choices(words, k=generator.choice([0, 1, 2, 3, 5, 8, 13]))) for _ in range(count)]


def cases() -> list[tuple[list[str], list[list[str]]]]:
    generator = random.Random(0)
    texts = [" ".join(tokenize(caption)) for caption in CAPTIONS]
    found = [(texts, [[text, other] for text, other in zip(texts, texts[1:] + texts[:1], strict=True)])]
    for clips in (2, 3, 5, 10, 40):
        for words in (["a"], ["a", "b", "c"], " ".join(texts).split()):
            references = [captions_of(generator, words, generator.randint(1, 5)) for _ in range(clips)]
            own = captions_of(generator, words, clips)
            found.append(
                ([generator.choice([text, first[0]]) for text, first in zip(own, references, strict=True)], references)
            )
    return [*found, ([""], [["", ""]]), (["a b c d e"], [["a b c d e"]]), (["a", "a"], [["b"], ["a"]])]


@pytest.mark.parametrize(("generated", "references"), cases())
def test_scores_are_those_of_pycocoevalcap(generated: list[str], references: list[list[str]]) -> None:
    theirs = dict(enumerate(references)), {clip: [text] for clip, text in enumerate(generated)}
    ours = [text.split() for text in generated], [[text.split() for text in several] for several in references]
    whole, per_clip = Bleu(4).compute_score(*theirs, verbose=0)
    counts = bleu_counts(*ours)
    np.testing.assert_allclose(bleu(counts.sum(0)), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(bleu(counts).T, per_clip, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rouge_l(*ours), Rouge().compute_score(*theirs)[1], rtol=0, atol=1e-6)
    if any(tokens for several in ours[1] for tokens in several):  # else it fails
        np.testing.assert_allclose(cider_d(*ours), Cider().compute_score(*theirs)[1], rtol=0, atol=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_tokens_are_those_of_the_java_tokenizer() -> None:
    theirs = PTBTokenizer().tokenize({clip: [{"caption": caption}] for clip, caption in enumerate(CAPTIONS)})
    assert {clip: [" ".join(tokenize(caption))] for clip, caption in enumerate(CAPTIONS)} == theirs


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenize("A man's dog DOESN'T bark, twice.") == ["a", "man", "'s", "dog", "does", "n't", "bark", "twice"]
    assert tokenize(" ... !? -- \u2026 ") == ["!?"]
    assert tokenize("") == []


def test_identical_captions_score_the_highest_and_empty_ones_0() -> None:
    references = [["a dog barks loudly outside"], ["rain falls on a roof"], ["a bell rings twice today"]]
    best = caption_metrics([several[0] for several in references], references)
    assert best.scores["cider_d"] == pytest.approx(10.0)
    assert best.scores["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert best.scores["rouge_l"] == 1.0
    empty = caption_metrics(["", "", ""], references)
    assert all(empty.scores[name] < 1e-6 for name in ("cider_d", "bleu_1", "rouge_l"))
    assert {len(values) for values in best.per_clip.values()} == {3}


def test_cider_of_one_clip_is_not_a_score_of_0() -> None:
    metrics = caption_metrics(["a dog"], [["a dog"]])
    assert "cider_d" not in metrics.scores
    assert metrics.unavailable["cider_d"].startswith("it needs at least 2 clips")
    assert metrics.unavailable["spider"] == "it is the mean of CIDEr-D and SPICE; see cider_d"


@pytest.mark.parametrize(
    ("generated", "references", "message"),
    [
        ([], [], "there are 0 generated captions"),
        (["a"], [["a"], ["b"]], "1 generated captions and references of 2 clips"),
        (["a", "b"], [["a"], []], r"references\[1\] is \[\]; pass a list of at least one reference"),
        (["a"], ["a dog"], r"references\[0\] is 'a dog'; pass a list"),
    ],
)
def test_captions_that_cannot_be_scored_are_an_error(generated, references, message: str) -> None:
    with pytest.raises(CaptionMetricsError, match=message):
        caption_metrics(generated, references)
