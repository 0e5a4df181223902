from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from slap_fast.data.tokenizer import SPECIAL_TOKENS, encode_captions, load_tokenizer, train_tokenizer

_CAPTIONS = [
    f"{subject} {verb} {place}"
    for subject in ("a dog", "a large dog", "the wind", "an old engine")
    for verb in ("barks", "howls", "hums softly", "stops")
    for place in ("in a room", "far away", "while it rains", "twice")
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(iter(_CAPTIONS), 400)


def test_captions_get_a_start_and_an_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("a dog barks")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert len(tokenizer) <= 400


def test_merges_are_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer("a dog barks in a room")["input_ids"]) < 12


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    import unicodedata

    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_long_captions_are_truncated_and_keep_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    short, long = encode_captions(tokenizer, ["a dog", "a dog barks " * 50], max_length=16)
    assert len(short) < len(long) == 16
    assert short[-1] == long[-1] == tokenizer.sep_token_id
    assert long[0] == tokenizer.cls_token_id
    with pytest.raises(ValueError, match="max_length is 2"):
        encode_captions(tokenizer, ["a"], max_length=2)


def test_save_and_load(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert encode_captions(loaded, _CAPTIONS, 128) == encode_captions(tokenizer, _CAPTIONS, 128)
    assert loaded.decode(loaded("A dog, barks!")["input_ids"], skip_special_tokens=True) == "A dog, barks!"
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_training_in_another_process_gives_the_same_files(tmp_path: Path) -> None:
    train_tokenizer(_CAPTIONS, 400, tmp_path / "a")
    program = (
        "import sys; from slap_fast.data.tokenizer import train_tokenizer; "
        "train_tokenizer(sys.stdin.read().splitlines(), 400, sys.argv[1])"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "b")], input="\n".join(_CAPTIONS), text=True, check=True
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_string_instead_of_a_list_of_captions_raises(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="captions is one string, 'a dog barks'; pass a list of captions"):
        encode_captions(tokenizer, "a dog barks", max_length=16)
    with pytest.raises(ValueError, match="captions is one string"):
        train_tokenizer("a dog barks", 400)


def test_a_too_small_vocabulary_and_missing_text_raise() -> None:
    with pytest.raises(ValueError, match="vocab_size is 260"):
        train_tokenizer(_CAPTIONS, 260)
    with pytest.raises(ValueError, match="no caption"):
        train_tokenizer(iter([]), 400)


def test_loading_something_that_is_not_a_tokenizer_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer can be loaded from 'nobody/nothing'"):
        load_tokenizer("nobody/nothing")
    bare = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(_CAPTIONS, 300)._tokenizer)
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no pad token"):
        load_tokenizer(tmp_path / "bare")
