"""Foreign and damaged tars: concatenated, sparse, with odd headers. Each is read or reported; none crashes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.data.format.tar_members import Member, TarError, iterate_members


def _tar(*names: str, format: Any = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(name.encode()[:1] * 600))
    return buffer.getvalue()


def _header(name: str, size: int, type: bytes, format: Any = tarfile.GNU_FORMAT) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    return info.tobuf(format)


def _members(path: Path, data: bytes) -> list[Member]:
    path.write_bytes(data)
    return list(iterate_members(path))


def test_concatenated_tars_are_read_to_the_end_of_the_last(tmp_path: Path) -> None:
    data = _tar("a.wav") + bytes(1 << 20) + _tar("b.wav", "c.wav")
    members = _members(tmp_path / "a.tar", data)
    assert [member.name for member in members] == ["a.wav", "b.wav", "c.wav"]
    for member in members:
        assert data[member.offset :][: member.size] == member.name.encode()[:1] * 600
    with pytest.raises(TarError, match=r"malformed: no member header at byte \d+"):
        _members(tmp_path / "a.tar", _tar("a.wav") + b"\1" * 1000)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sparse_members_are_reported_and_not_read_as_audio(tmp_path: Path, format: Any) -> None:
    if format == tarfile.GNU_FORMAT:
        header = bytearray(_header("a.wav", 600, tarfile.GNUTYPE_SPARSE))
        header[386:410] = b"%011o\0%011o\0" % (0, 600)
        header[483:495] = b"%011o\0" % 9000
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        sparse = bytes(header) + bytes(1024)
    else:
        info = tarfile.TarInfo("a.wav")
        info.size, info.pax_headers = 600, {"GNU.sparse.map": "0,600", "GNU.sparse.size": "9000"}
        sparse = info.tobuf(format) + bytes(1024)
    first, second = _members(tmp_path / "a.tar", sparse + _tar("b.wav"))
    assert (first.name, second.name, second.problem) == ("a.wav", "b.wav", "")
    assert "tar -S" in first.problem


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [1 << 40, (1 << 63) + 7])
def test_a_header_that_claims_a_terabyte_name_is_malformed(tmp_path: Path, type: bytes, size: int) -> None:
    (tmp_path / "a.tar").write_bytes(_tar("a.wav")[:1536] + _header("x", size, type) + bytes(4096))
    members = iterate_members(tmp_path / "a.tar")
    assert next(members).name == "a.wav"
    with pytest.raises(TarError, match="malformed"):
        next(members)


def test_thousands_of_headers_for_one_member_are_malformed(tmp_path: Path) -> None:
    chain = (_header("x", 2, tarfile.GNUTYPE_LONGNAME) + b"y".ljust(512, b"\0")) * 3000
    with pytest.raises(TarError, match="malformed: hundreds of headers"):
        _members(tmp_path / "a.tar", chain + _tar("a.wav"))


_WHOLE = _tar("a.wav", "x" * 120 + ".wav", "b.txt") + _tar("c.json", "\u00e9.wav", format=tarfile.PAX_FORMAT)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(_WHOLE) - 1), st.binary(min_size=1, max_size=12)), max_size=4),
    end=st.none() | st.integers(0, len(_WHOLE)),
    types=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(b"0123456789xgLKSVMNDA\0\xff")), max_size=2),
)
def test_random_damage_only_ends_the_tar(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, bytes]],
    end: int | None,
    types: list[tuple[int, int]],
) -> None:
    data = bytearray(_WHOLE)
    for place, change in changes:
        data[place : place + len(change)] = change
    for block, type in types:
        start = 512 * block
        data[start + 156] = type
        # With a valid checksum, so that the header is accepted.
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(data[:end])
    try:
        for member in iterate_members(path):
            assert member.problem or member.offset + member.size <= len(data[:end])
    except TarError:
        pass
