"""The database of a library: damage, full disks, other processes, and filters."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.library import database as database_module
from slap_fast.library.database import FILE_NAME, Database, WindowRow
from slap_fast.library.errors import LibraryError

WIDTH = 8
META = {"width": WIDTH, "model": {"name": "m", "weights": "w"}}


def vector(value: float = 1.0) -> np.ndarray:
    return np.full(WIDTH, value, np.float32)


def add(database: Database, path: str, windows: int = 3, *, member: str = "", seconds: float | None = None) -> int:
    rows = [WindowRow(5.0 * n, 5.0 * n + 10, False, vector(n)) for n in range(windows)]
    return database.store_recording(
        path,
        member,
        rows,
        size=1,
        mtime_ns=2,
        digest=b"d",
        seconds=5.0 * windows + 5 if seconds is None else seconds,
        embedding=vector(),
    )


def read_all(folder: Path) -> list[tuple[str, int]]:
    """Every recording with its number of windows, after reading every row."""
    with Database(folder) as database:
        database.recording_embeddings()
        database.folders()
        for _ in database.vectors():
            pass
        _, recordings = database.window_recordings()
        return [(row.path, int((recordings == row.id).sum())) for row in database.recordings(state="complete")]


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a library of 40 recordings with 3 windows each."""
    folder = tmp_path_factory.mktemp("template") / "library"
    with Database.create(folder, META) as database, database.transaction():
        for number in range(40):
            add(database, f"/sounds/{number}.wav")
    return (folder / FILE_NAME).read_bytes()


@pytest.fixture
def folder(template: bytes, tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(template)
    return folder


@pytest.fixture(scope="module")
def emptied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database for examples that empty it first: making one takes as long as many of them."""
    with Database.create(tmp_path_factory.mktemp("emptied") / "library", META) as database:
        yield database


@pytest.fixture
def database(folder: Path) -> Iterator[Database]:
    with Database(folder, write=True) as database:
        yield database


# Damage


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:16384] + bytes(len(content) - 16384))


def _other_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name)")
    connection.close()


def _newer_format(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    connection.commit()
    connection.close()


def _broken_json(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '{' WHERE key = 'width'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty.*index again"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is truncated.*index again"),
        (lambda path: path.write_bytes(b"RIFF" + bytes(5000)), "is no database.*index again"),
        (_truncate, "is truncated: .* of .* bytes.*index again"),
        (_overwrite_pages, "is damaged.*quick_check.*index again"),
        (_other_database, "is damaged.*no such table.*index again"),
        (_newer_format, "format is 99.*update slap-fast"),
        (_broken_json, "is damaged.*index again"),
        (lambda path: (path.unlink(), path.mkdir()), "no library here; .* in a new folder: `slap-fast index"),
        (lambda path: shutil.rmtree(path.parent), "no library here; make one with `slap-fast index"),
        (lambda path: shutil.rmtree(path.parent.parent), "is its drive mounted"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_a_damaged_file_is_refused_with_what_to_do(
    folder: Path, damage: Callable[[Path], object], message: str, write: bool
) -> None:
    damage(folder / FILE_NAME)
    with pytest.raises(LibraryError, match=message), Database(folder, write=write) as database:
        database.recording_embeddings()


@settings(max_examples=60)
@given(offset=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=300))
def test_bytes_that_changed_anywhere_give_no_error_but_a_library_error(
    template: bytes, tmp_path_factory: pytest.TempPathFactory, offset: float, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    content = bytearray(template)
    begin = int(offset * len(content))
    content[begin : begin + len(noise)] = noise[: len(content) - begin]
    (folder / FILE_NAME).write_bytes(content)
    try:
        read_all(folder)
        with Database(folder) as database:
            database.check()
    except LibraryError:
        pass


def test_check_finds_damage_that_opening_does_not(folder: Path) -> None:
    with Database(folder) as database:
        assert database.check() == []
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    content[-16384:] = bytes(16384)
    path.write_bytes(content)
    with Database(folder) as database:
        assert database.check()


def test_a_log_that_was_cut_anywhere_leaves_whole_transactions(tmp_path: Path) -> None:
    source = tmp_path / "library"
    killed = run_python(
        """
        import os, sys
        from pathlib import Path
        from slap_fast.library.database import Database
        from tests.library.test_database import META, add
        database = Database.create(Path(sys.argv[1]), META)
        for number in range(12):
            add(database, f"/{number:02}.wav", 1 + number)
        os._exit(0)  # as if killed: nothing is closed
        """,
        source,
    )
    assert killed.wait() == 0
    log = (source / f"{FILE_NAME}-wal").read_bytes()
    assert read_all(source)[-1] == ("/11.wav", 12)
    counts = set()
    for share in np.linspace(0, 1, 30):
        copy = tmp_path / f"copy-{share}"
        copy.mkdir()
        shutil.copy(source / FILE_NAME, copy)
        (copy / f"{FILE_NAME}-wal").write_bytes(log[: int(share * len(log))])
        found = read_all(copy)
        assert found == [(f"/{number:02}.wav", 1 + number) for number in range(len(found))]
        counts.add(len(found))
    assert {0, 12} < counts


# What is not there, cannot be written, or is full


def test_a_library_that_is_deleted_or_replaced_while_open_is_neither_read_nor_written(
    folder: Path, database: Database
) -> None:
    with Database(folder) as reader:
        folder.rename(folder.with_name("elsewhere"))
        for action in (reader.count_windows, lambda: add(database, "/lost.wav")):
            with pytest.raises(LibraryError, match="deleted or its drive is gone"):
                action()
        Database.create(folder, META).close()
        for action in (reader.count_windows, lambda: add(database, "/lost.wav")):
            with pytest.raises(LibraryError, match="was replaced while the library was open"):
                action()
    with Database(folder) as other:
        assert other.count_windows() == 0


_READ_ONLY = """
import os, sys
from pathlib import Path
from slap_fast.library.database import Database
from slap_fast.library.errors import LibraryError
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    with Database(folder, write=sys.argv[2] == "write") as database:
        print("windows", database.count_windows(), flush=True)
        if sys.argv[2] == "wait":
            sys.stdin.readline()
            database.count_windows()
except LibraryError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_written_is_read_while_that_is_safe() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        folder = Path(scratch, "library")
        with Database.create(folder, META) as database:
            add(database, "/a.wav")
        folder.chmod(0o555)
        try:
            assert run_python(_READ_ONLY, folder, "read").communicate()[0] == "windows 3\n"
            assert "cannot be written" in run_python(_READ_ONLY, folder, "write").communicate()[0]
            assert sorted(path.name for path in folder.iterdir()) == [FILE_NAME]

            waiting = subprocess.Popen(
                [sys.executable, "-c", _READ_ONLY, folder, "wait"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "windows 3\n"
            folder.chmod(0o755)
            with Database(folder, write=True) as database:
                add(database, "/b.wav")
            folder.chmod(0o555)
            assert "was changed while it was open on a read-only folder" in waiting.communicate("\n")[0]

            folder.chmod(0o755)
            writer = Database(folder, write=True)
            add(writer, "/c.wav")
            log = (folder / f"{FILE_NAME}-wal").read_bytes()
            content = (folder / FILE_NAME).read_bytes()
            writer.close()
            (folder / FILE_NAME).write_bytes(content)
            (folder / f"{FILE_NAME}-wal").write_bytes(log)
            folder.chmod(0o555)
            assert "has writes that are not in the file yet" in run_python(_READ_ONLY, folder, "read").communicate()[0]
        finally:
            folder.chmod(0o755)


def test_a_full_disk_loses_nothing_and_writing_goes_on_when_there_is_room(folder: Path, database: Database) -> None:
    with database.transaction() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    def fill() -> None:
        for number in range(2000):
            add(database, f"/more/{number}.wav", 1)

    with pytest.raises(LibraryError, match="disk is full; free some space"):
        fill()
    before = read_all(folder)
    assert len(before) >= 40
    assert all(windows in (1, 3) for _, windows in before)
    with database.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    add(database, "/after.wav")
    assert len(read_all(folder)) == len(before) + 1
    assert database.check() == []


def test_an_embedding_that_cannot_be_searched_is_not_written(database: Database) -> None:
    for embedding, message in (
        (np.ones(WIDTH + 1, np.float32), "shape .9. for a library of width 8"),
        (np.ones((1, WIDTH), np.float32), "shape .1, 8. for a library of width 8"),
        (vector(np.nan), "not finite"),
        (vector(np.inf), "not finite"),
    ):
        with pytest.raises(LibraryError, match=message):
            database.add_partial_windows(1, [WindowRow(0, 10, False, embedding)], 10)
        number = database.begin_recording("/new.wav", "", size=1, mtime_ns=1, digest=b"")
        with pytest.raises(LibraryError, match=message):
            database.complete_recording(number, [], seconds=1, embedding=embedding)
        with pytest.raises(LibraryError, match=message):
            database.complete_recording(number, [WindowRow(0, 1, True, embedding)], seconds=1, embedding=vector())
    with pytest.raises(LibraryError, match="no duration"):
        database.add_partial_windows(1, [WindowRow(10, 10, False, vector())], 10)
    with pytest.raises(LibraryError, match="is a copy, is not there or not complete"):
        database.copy_recording(number, "/copy.wav", "", size=1, mtime_ns=1)
    assert database.find("/copy.wav") is None
    assert database.count_windows() == 120
    assert database.partial_windows(1) == []


# Transactions, processes, threads


def test_an_inner_transaction_that_fails_takes_back_its_own_writes_alone(database: Database) -> None:

    def fail_after(name: str) -> None:
        with database.transaction():
            add(database, name)
            raise RuntimeError

    with database.transaction():
        add(database, "/outer.wav")
        with pytest.raises(RuntimeError):
            fail_after("/inner.wav")
    assert database.find("/outer.wav") is not None
    assert database.find("/inner.wav") is None
    with pytest.raises(RuntimeError):
        fail_after("/alone.wav")
    assert database.find("/alone.wav") is None


def test_a_snapshot_sees_one_state_while_another_process_writes(folder: Path, database: Database) -> None:
    with Database(folder) as reader:
        with reader.snapshot():
            assert reader.count_windows() == 120
            add(database, "/new.wav")
            assert reader.count_windows() == 120
        assert reader.count_windows() == 123


def test_processes_that_read_while_one_writes_see_whole_recordings(folder: Path, database: Database) -> None:
    readers = [
        run_python(
            """
            import sys
            from pathlib import Path
            from slap_fast.library.database import Database
            states = set()
            with Database(Path(sys.argv[1])) as database:
                print("ready", flush=True)
                while database.find("/done.wav") is None:
                    with database.snapshot():
                        ids, recordings = database.window_recordings()
                        stored = sum(len(some) for some, _ in database.vectors())
                        assert stored == len(ids) == database.count_windows(), (stored, len(ids))
                        complete = {row.id for row in database.recordings(state="complete")}
                        assert complete == set(recordings.tolist())
                        states.add(len(ids))
            print("states", len(states))
            """,
            folder,
        )
        for _ in range(3)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for number in range(300):
        add(database, f"/{number}.wav", 1 + number % 7)
        if number % 3 == 0:
            database.remove_recordings([recording.id for recording in database.recordings()[:1]])
    add(database, "/done.wav")
    for reader in readers:
        output, _ = reader.communicate()
        assert output.startswith("states"), output
        assert int(output.split()[1]) > 1


def test_threads_share_a_database(database: Database) -> None:
    def work(number: int) -> None:
        try:
            for step in range(20):
                add(database, f"/{number}/{step}.wav")
                assert len(database.windows_near(1, 0, 100)) == 3
                with database.snapshot():
                    assert database.count_windows() == sum(len(ids) for ids, _ in database.vectors())
        except BaseException as error:
            wrong.append(error)

    wrong: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert database.count_windows() == 120 + 4 * 20 * 3


def test_a_second_writer_is_told_and_a_closed_library_too(
    folder: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slap_fast.library.database_file.BUSY_SECONDS", 0)
    with (
        Database(folder, write=True) as second,
        database.transaction(),
        pytest.raises(LibraryError, match="another process has been writing"),
    ):
        add(second, "/second.wav")
    database.close()
    with pytest.raises(LibraryError, match="is closed; open it again"):
        database.count_windows()
    with pytest.raises(LibraryError, match="is closed; open it again"):
        add(database, "/closed.wav")


def test_the_log_is_emptied_after_a_long_transaction_and_when_the_last_process_closes(
    folder: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOG_BYTES", 1 << 20)
    log = folder / f"{FILE_NAME}-wal"
    with Database(folder) as reader:
        with database.transaction():
            for number in range(3000):
                add(database, f"/long/{number}.wav", 5)
        assert log.stat().st_size <= 1 << 20
        assert reader.count_windows() == 120 + 15_000
        add(database, "/last.wav")
        database.close()
        assert log.stat().st_size == 0
        assert reader.count_windows() == 120 + 15_003


# Names and filters


def test_the_view_rows_is_read_by_any_client_whatever_the_names(folder: Path, database: Database) -> None:
    names = ["/odd/\udcff\udc80.wav", '/odd/new\nline\'s "quotes" 🎵.wav', "/odd/-#%.wav"]
    for name in names:
        add(database, name, 1)
    number = database.begin_recording(
        "/odd/failed\udcff.wav",
        "",
        size=0,
        mtime_ns=0,
        digest=b"",
        state="failed",
        reason="x",
        detail="/odd/\udcff: no",
    )
    assert database.recordings_of([number])[number].path == "/odd/failed\udcff.wav"
    assert [row.path for row in database.recordings() if row.path in names] == sorted(names, key=os.fsencode)
    connection = sqlite3.connect(folder / FILE_NAME)
    rows = connection.execute("SELECT * FROM rows WHERE file GLOB '/odd/*'").fetchall()
    assert {row[1] for row in rows} == {r"/odd/\udcff\udc80.wav", *names[1:]}
    connection.close()


@settings(max_examples=50)
@given(
    paths=st.lists(
        st.lists(st.sampled_from(["a", "ab", "a.b", "a0", "a#k", "\udcff", "é"]), min_size=1, max_size=4),
        min_size=1,
        max_size=12,
    ),
    below=st.lists(st.sampled_from(["a", "ab", "a.b", "a#k", "\udcff"]), max_size=3),
    seconds=st.tuples(st.none() | st.integers(0, 12), st.none() | st.integers(0, 12)),
)
def test_filters_pass_the_windows_of_the_recordings_below_a_folder_and_of_some_duration(
    emptied: Database, paths: list[list[str]], below: list[str], seconds: tuple[int | None, int | None]
) -> None:
    database, name, (least, most) = emptied, "/" + "/".join(below), seconds
    with database.transaction():
        database.remove_recordings([row.id for row in database.recordings()])
        for number, parts in enumerate(paths):
            add(database, "/" + "/".join(parts), 1 + number % 3, seconds=number)
    there = [row for row in database.recordings() if row.path == name or row.path.startswith(name.rstrip("/") + "/")]
    if not there:
        with pytest.raises(LibraryError, match="no recording there; it has"):
            database.window_ids(below=[name])
        return
    kept = [
        row.id for row in there if (least is None or row.seconds >= least) and (most is None or row.seconds <= most)
    ]
    ids, recordings = database.window_recordings()
    found = database.window_ids(below=[name], min_seconds=least, max_seconds=most)
    assert found.tolist() == ids[np.isin(recordings, kept)].tolist()


def test_a_filter_takes_a_file_a_dataset_and_a_clip_of_it(database: Database) -> None:
    clips = {key: add(database, "/data#1/set", 1, member=key) for key in ("one", "#two", "a/b")}
    file = add(database, "/data#1/set#one", 1)  # a file named like a clip
    recordings = dict(zip(*(part.tolist() for part in database.window_recordings()), strict=True))

    def found(*names: str) -> set[int]:
        return {recordings[number] for number in database.window_ids(below=names).tolist()}

    assert found("/data#1/set") == found("/data#1/set/") == set(clips.values())
    assert found("/data#1") == {*clips.values(), file}
    assert found("/data#1/set#one") == {clips["one"], file}
    assert found("/data#1/set##two", "/data#1/set#a/b") == {clips["#two"], clips["a/b"]}
    assert len(found("/")) == 44


def test_filters_and_neighbors_read_indexes_not_embeddings(database: Database) -> None:
    statements: list[str] = []
    with database.transaction() as connection:
        connection.set_trace_callback(statements.append)
        database.window_recordings()
        database.window_ids(below=["/sounds"], min_seconds=5, max_seconds=100)
        database.windows_near(7, 6, 12)
        connection.set_trace_callback(None)
        plans = [
            row[3]
            for statement in statements
            if statement.startswith("SELECT")
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
    reads = [plan for plan in plans if plan.startswith(("SCAN", "SEARCH")) and "json_each" not in plan]
    assert len(reads) >= 5
    assert all("INDEX" in plan for plan in reads), reads
    assert all("COVERING INDEX windows_by_recording" in plan for plan in reads if " windows " in plan), reads
    assert [place.start for place in database.windows_near(7, 6, 11)] == [0, 5, 10]
    assert [place.start for place in database.windows_near(7, 10, 11)] == [5, 10]
