"""Small stand-ins of published datasets, with their real file names and columns, from download to clips."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.audio.errors import AudioError
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import prepare
from slap_fast.data.prepare.source import ClipItem, Rejection, RenderedAudio
from slap_fast.data.prepare.source_detection import open_source
from tests.data.builders import encode

SECOND = np.arange(16_000, dtype=np.int16)


def _sound(number: int) -> bytes:
    """A FLAC file that `_number` recognizes."""
    return encode(SECOND[: 8_000 + number])


def _number(item: ClipItem) -> int | str:
    """The number of the sound, or why it cannot be used."""
    assert not isinstance(item.audio, RenderedAudio)
    try:
        with item.audio.open() as sound:
            return sum(len(block) for _, block in sound.blocks()) - 8_000
    except AudioError as error:
        return error.reason


def _clips(source: Any) -> dict[str, tuple[list[str], int | str]]:
    """Captions and sound of each clip, by name."""
    items = list(source)
    assert source.count() in (None, len(items))
    assert source.seen == sum(item.seen for item in items)
    return {item.name: (list(item.captions), _number(item)) for item in items if isinstance(item, ClipItem)}


def _rejected(source: Any) -> dict[str, str]:
    return {item.origin: item.reason for item in source if isinstance(item, Rejection)}


def _metadata(source: Any) -> dict[str, dict[str, Any]]:
    return {item.name: item.metadata for item in source if isinstance(item, ClipItem)}


def _write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _zip(path: Path, members: dict[str, bytes], method: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _wavcaps(root: Path) -> None:
    """As on the hub: JSONs, and zips with the paths of the machine that made them."""
    inside = "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms"
    rows = {
        "AudioSet_SL/as_final.json": [("YAAAAAAAAAAA.wav", "a siren"), ("YBBBBBBBBBBB.wav", "rain")],
        "FreeSound/fsd_final.json": [("17", "a door"), ("18", "a cat")],
        "SoundBible/sb_final.json": [("17", "a bell")],
    }
    for name, data in rows.items():
        clips = [{"id": id, "caption": text, "audio": "wav_path", "duration": 0.5} for id, text in data]
        _write(root, {f"json_files/{name}": json.dumps({"num_captions_per_audio": 1, "data": clips})})
    blacklist = {"AudioSet": ["YAAAAAAAAAAA.wav", "Yelsewhere_0.wav"], "FreeSound": ["17.wav"]}
    _write(root, {"json_files/blacklist/blacklist_exclude_all_ac.json": json.dumps(blacklist)})
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    _zip(
        root / "Zip_files/AudioSet_SL/AudioSet_SL.zip",
        {f"{inside}/AudioSet_SL_flac/Y{letter * 11}.flac": _sound(number) for number, letter in enumerate("AB")},
        deflated,
    )
    _zip(root / "Zip_files/FreeSound/FreeSound.zip", {f"{inside}/FreeSound_flac/17.flac": _sound(2)}, stored)
    _zip(root / "Zip_files/SoundBible/SoundBible.zip", {f"{inside}/SoundBible_flac/17.flac": _sound(3)}, stored)


def test_wavcaps_is_read_from_its_zips_without_its_blacklisted_clips(tmp_path: Path) -> None:
    _wavcaps(tmp_path)
    everything = {
        "AudioSet_SL/YAAAAAAAAAAA": (["a siren"], 0),
        "AudioSet_SL/YBBBBBBBBBBB": (["rain"], 1),
        "FreeSound/17": (["a door"], 2),
        "FreeSound/18": (["a cat"], "missing_file"),
        "SoundBible/17": (["a bell"], 3),
    }
    assert _clips(open_source(tmp_path)) == everything
    # Each JSON alone finds the zips above json_files; an unpacked file is preferred to the zip.
    _write(tmp_path, {"audio/SoundBible_flac/17.flac": _sound(9)})
    assert _clips(open_source(tmp_path / "json_files/SoundBible/sb_final.json")) == {"17": (["a bell"], 9)}
    blacklist = tmp_path / "json_files/blacklist/blacklist_exclude_all_ac.json"
    report = prepare(open_source(tmp_path, exclude=[blacklist]), tmp_path / "out", workers=0, progress=False)
    # SoundBible has an id of the list of FreeSound.
    index = ClipIndex.open(tmp_path / "out")
    assert sorted(index.key(clip) for clip in range(len(index))) == ["AudioSet_SL/YBBBBBBBBBBB", "SoundBible/17"]
    assert (report.seen, report.rejected) == (5, {"excluded": 2, "missing_file": 1})
    lines = [json.loads(line) for line in (tmp_path / "out/report.jsonl").read_text().splitlines()]
    assert {(line["reason"], line["source"].split()[-1]) for line in lines} == {
        ("excluded", "AudioSet_SL/YAAAAAAAAAAA"), ("excluded", "FreeSound/17"), ("missing_file", "FreeSound/18"),
    }  # fmt: skip


def test_a_zip_in_parts_or_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    _wavcaps(tmp_path)
    archive = tmp_path / "Zip_files/FreeSound/FreeSound.zip"
    archive.with_suffix(".z01").touch()
    with pytest.raises(DatasetError, match=r"FreeSound\.zip is split into parts .*`zip -s 0 .*FreeSound_joined\.zip'`"):
        list(open_source(tmp_path))
    # The parts may stay beside unpacked audio, even if that of the first row is missing, and beside the joined zip.
    unpacked = archive.with_name("FreeSound_flac") / "18.flac"
    unpacked.parent.mkdir()
    unpacked.write_bytes(encode(SECOND[:8_001]))
    clips = _clips(open_source(tmp_path))
    assert (clips["FreeSound/18"], "FreeSound/17" in clips) == ((["a cat"], 1), False)
    unpacked.unlink()
    joined = archive.with_name("FreeSound_joined.zip")
    joined.write_bytes(archive.read_bytes())
    clips = _clips(open_source(tmp_path))
    assert (clips["FreeSound/17"], clips["FreeSound/18"]) == ((["a door"], 2), (["a cat"], "missing_file"))
    joined.write_bytes(joined.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"FreeSound_joined\.zip: not a readable zip .*download it again"):
        list(open_source(tmp_path))
    joined.unlink()
    archive.unlink()
    # A damaged member is one clip less, also if its audio can be decoded.
    whole = tmp_path / "Zip_files/AudioSet_SL/AudioSet_SL.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as members:
        for number, letter in enumerate("AB"):
            members.writestr(f"AudioSet_SL_flac/Y{letter * 11}.wav", encode(SECOND[: 8_000 + number], format="WAV"))
    damaged = bytearray(whole.read_bytes())
    damaged[5_000] ^= 0xFF
    whole.write_bytes(damaged)
    clips = _clips(open_source(tmp_path))
    assert clips["AudioSet_SL/YAAAAAAAAAAA"][1] == "unreadable"
    assert clips["AudioSet_SL/YBBBBBBBBBBB"][1] == 1


@pytest.mark.parametrize(
    ("name", "content", "left"),
    [
        ("ids.txt", "YAAAAAAAAAAA\n\n18.wav\n", {"AudioSet_SL/YBBBBBBBBBBB", "FreeSound/17", "SoundBible/17"}),
        ("dcase.csv", "sound_id\n17\n", {"AudioSet_SL/YAAAAAAAAAAA", "AudioSet_SL/YBBBBBBBBBBB", "FreeSound/18"}),
        ("headerless.csv", "BBBBBBBBBBB\n17\n", {"AudioSet_SL/YAAAAAAAAAAA", "FreeSound/18"}),
        ("list.json", '["BBBBBBBBBBB", 17, "18"]', {"AudioSet_SL/YAAAAAAAAAAA"}),
        ("empty.txt", "\n", "holds no id"),
        ("two.csv", "a,b\n1,2\n", "no column of ids"),
        ("other.json", '{"AudioSet": 5}', "neither a list of ids"),
        ("broken.json", "{", "cannot be read as a list of ids"),
    ],
)
def test_exclusion_lists(tmp_path: Path, name: str, content: str, left: set[str] | str) -> None:
    _wavcaps(tmp_path)
    _write(tmp_path, {name: content})
    if isinstance(left, str):
        with pytest.raises(DatasetError, match=f"{name}: .*{left}"):
            open_source(tmp_path, exclude=[tmp_path / name])
    else:
        assert _clips(open_source(tmp_path, exclude=[tmp_path / name])).keys() == left


def test_audiocaps_2_keeps_the_captions_that_contain_line_breaks(tmp_path: Path) -> None:
    header = "audiocap_id,youtube_id,start_time,caption\n"
    train = '7994,AAAAAAAAAAA,30,a dog barks and\ra dog is whimpering\n8,BBBBBBBBBBB,0,"two\r\nlines"\n'
    _write(tmp_path, {f"dataset2.0/{split}.csv": header + train for split in ("train", "test")})
    _write(tmp_path, {"audio/AAAAAAAAAAA_30.flac": _sound(1), "audio/YBBBBBBBBBBB.flac": _sound(2)})
    with pytest.raises(DatasetError, match="has several splits; choose one with --split: train, test"):
        open_source(tmp_path)
    assert _clips(open_source(tmp_path, split="train")) == {
        "AAAAAAAAAAA_30": (["a dog barks and a dog is whimpering"], 1),
        "BBBBBBBBBBB_0": (["two lines"], 2),
    }


def test_clotho_with_its_metadata_and_its_archive(tmp_path: Path) -> None:
    captions = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    metadata = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
    for split in ("development", "evaluation"):
        _write(
            tmp_path,
            {
                f"clotho_captions_{split}.csv": captions + "Caf\u00e9 door .wav,1,2,3,4,5\nb.wav ,1,2,3,4,5\n",
                f"clotho_metadata_{split}.csv": (
                    metadata + 'Caf\u00e9 door .wav,door;street,123,https://freesound.org/123,"[1, 2]",me,by\n'
                ).encode("latin-1"),
                f"clotho_audio_{split}.7z": b"7z",
            },
        )
    with pytest.raises(DatasetError, match=r"clotho_audio_evaluation\.7z: unpack it first: `7z x "):
        open_source(tmp_path / "clotho_captions_evaluation.csv")
    _write(tmp_path, {"evaluation/Caf\u00e9 door .wav": _sound(1), "evaluation/b.wav": _sound(2)})
    source = open_source(tmp_path, split="evaluation")
    assert _clips(source) == {"Caf\u00e9 door ": (list("12345"), 1), "b": (list("12345"), 2)}
    assert _metadata(source)["Caf\u00e9 door "]["sound_id"] == "123"
    _write(tmp_path, {"freesound.txt": "123\n"})
    assert _clips(open_source(tmp_path, split="evaluation", exclude=[tmp_path / "freesound.txt"])).keys() == {"b"}


def test_macs_with_the_zips_of_tau(tmp_path: Path) -> None:
    yaml = "files:\n" + "".join(
        f"- filename: airport-{n}.wav\n  annotations:\n"
        f"  - annotator_id: 1\n    sentence: people talk {n}\n    tags: [adults_talking]\n"
        f"  - annotator_id: 2\n    sentence: steps {n}\n    tags: [footsteps]\n"
        for n in range(3)
    )
    _write(tmp_path, {"MACS.yaml": yaml + "- filename: x.wav\n", "audio/airport-0.wav": _sound(0)})
    inside = "TAU-urban-acoustic-scenes-2019-development"
    _zip(tmp_path / f"{inside}.audio.1.zip", {f"{inside}/audio/airport-1.wav": _sound(1)}, zipfile.ZIP_DEFLATED)
    for given in (tmp_path, tmp_path / "MACS.yaml"):
        source = open_source(given)
        assert _clips(source) == {
            f"airport-{n}": ([f"people talk {n}", f"steps {n}"], n if n < 2 else "missing_file") for n in range(3)
        }
        assert _rejected(source) == {"MACS.yaml[3]": "malformed_row"}
        assert _metadata(source)["airport-0"] == {"tags": [["adults_talking"], ["footsteps"]]}
    _write(tmp_path, {"MACS.yaml": "files: [\n"})
    with pytest.raises(DatasetError, match=r"MACS\.yaml: not readable YAML"):
        open_source(tmp_path)


def _fsd50k(root: Path) -> None:
    _write(
        root,
        {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n65,Bark,/m/05tny_,val\n',
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n66,Bark,/m/05tny_\n",
            "FSD50K.ground_truth/vocabulary.csv": "0,Bark,/m/05tny_\n1,Electric_guitar,/m/02sgy\n2,Guitar,/m/0342h\n"
            "3,Music,/m/04rlf\n",
            "FSD50K.dev_audio/64.wav": _sound(1),
            "FSD50K.dev_audio/65.wav": _sound(2),
            "FSD50K.eval_audio/66.wav": _sound(3),
        },
    )


def test_fsd50k_is_captioned_with_its_labels(tmp_path: Path) -> None:
    _fsd50k(tmp_path)
    guitar = (["the sound of electric guitar, guitar and music"], 1)
    dev = {"FSD50K.dev_audio/64": guitar, "FSD50K.dev_audio/65": (["the sound of bark"], 2)}
    with pytest.raises(DatasetError, match=r"it has the splits eval, train, val, dev \(train and val\); choose one"):
        open_source(tmp_path)
    assert _clips(open_source(tmp_path, split="dev")) == dev
    assert _clips(open_source(tmp_path / "FSD50K.ground_truth/dev.csv")) == dev
    assert _clips(open_source(tmp_path, split="train")) == {"FSD50K.dev_audio/64": guitar}
    source = open_source(tmp_path, split="eval", caption_template="{}, recorded outdoors")
    assert _clips(source) == {"FSD50K.eval_audio/66": (["bark, recorded outdoors"], 3)}
    assert _metadata(source)["FSD50K.eval_audio/66"] == {
        "labels": ["Bark"],
        "split": "eval",
        "caption_source": "template",
    }
    with pytest.raises(DatasetError, match=r"needs \{\} once"):
        open_source(tmp_path, split="eval", caption_template="a sound")


def test_audioset_is_captioned_with_its_labels(tmp_path: Path) -> None:
    segments = (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--AAAAAAAAA, 30.000, 40.000, "/m/09x0r,/m/05tny_"\n--BBBBBBBBB, 0.000, 10.000, "/m/05tny_"\n'
    )
    classes = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05tny_,"Bark"\n'
    _write(tmp_path, {"class_labels_indices.csv": classes, "eval_segments.csv": segments})
    _write(tmp_path, {"eval/Y--AAAAAAAAA.wav": _sound(1)})
    for source in (open_source(tmp_path, split="eval"), open_source(tmp_path / "eval_segments.csv")):
        clips = {Path(name).name: clip for name, clip in _clips(source).items()}
        assert clips == {
            "Y--AAAAAAAAA": (["the sound of speech and bark"], 1),
            "--BBBBBBBBB": (["the sound of bark"], "missing_file"),
        }


def test_a_table_of_labels_without_its_classes_or_audio_says_what_is_missing(tmp_path: Path) -> None:
    _write(tmp_path, {"a/eval_segments.csv": "# Segments csv\n"})
    for given in (tmp_path / "a", tmp_path / "a/eval_segments.csv"):
        with pytest.raises(
            DatasetError, match=r"eval_segments\.csv: class_labels_indices\.csv, .* has to be beside it"
        ):
            open_source(given)
    _fsd50k(tmp_path / "b")
    (tmp_path / "b/FSD50K.dev_audio").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"no split 'dev'; its splits: eval; .*FSD50K\.dev_audio: not there"):
        open_source(tmp_path / "b", split="dev")


def test_class_folders_are_captioned_by_a_template_alone(tmp_path: Path) -> None:
    _write(tmp_path, {"dog_bark/1.wav": _sound(1), "rain/2.wav": _sound(2), "3.wav": _sound(3)})
    source = open_source(tmp_path, caption_template="this is {}")
    assert _clips(source) == {"dog_bark/1": (["this is dog bark"], 1), "rain/2": (["this is rain"], 2)}
    assert _rejected(source) == {"3.wav": "no_class"}
    assert all(captions == [] for captions, _ in _clips(open_source(tmp_path)).values())
    for arguments in ({"split": "train"}, {"exclude": [tmp_path / "gone.txt"]}, {"layout": "fsd50k"}):
        with pytest.raises(
            DatasetError,
            match=r"--split train is for|gone\.txt: cannot be read \(No such file|not the folder of fsd50k",
        ):
            open_source(tmp_path, **arguments)
