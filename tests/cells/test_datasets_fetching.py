"""Downloads that break off go on, wrong files are not kept, and messages say what to do."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from latentcell import InputError
from latentcell.cells.datasets import cache_folder
from latentcell.cells.datasets.fetching import MissingFile, Remote, fetch
from served import Server

CONTENT = np.random.default_rng(0).bytes(400_000)
HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
NAME = "plate/field 1.tif"


def remote(known_hash: str | None = HASH) -> Remote:
    return Remote("set", NAME, "https://example.org/field.tif", known_hash)


@pytest.fixture
def held(server: Server) -> Server:
    server.serve("set", {"plate/field%201.tif": CONTENT})
    return server


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("known_hash", [HASH, f"md5:{hashlib.md5(CONTENT).hexdigest()}", None])
def test_a_file_is_downloaded_once_and_then_taken_from_the_cache(held: Server, known_hash: str | None) -> None:
    path = fetch(remote(known_hash))
    assert path == cache_folder() / "set" / "plate" / "field 1.tif"
    assert path.read_bytes() == CONTENT
    assert len(held.asked) == 1
    held.files.clear()
    assert fetch(remote(known_hash)) == path
    assert len(held.asked) == 1
    assert left_in(cache_folder()) == ["field 1.tif"]


def test_a_transfer_that_breaks_off_is_taken_up_again_by_itself(held: Server) -> None:
    held.cut = {"/set/plate/field%201.tif": [150_000, 150_000]}
    assert fetch(remote()).read_bytes() == CONTENT
    starts = [asked for _, asked in held.asked]
    assert starts[0] is None
    assert len(starts) == 3
    assert 0 < int(starts[1].removeprefix("bytes=")[:-1]) < int(starts[2].removeprefix("bytes=")[:-1])


def test_a_run_that_was_stopped_goes_on_where_it_was_and_gives_the_same_bytes(held: Server) -> None:
    held.cut = {"/set/plate/field%201.tif": [150_000, 0]}
    with pytest.raises(InputError, match=r"no connection, or it broke off.*0\.1 MB that came are kept"):
        fetch(remote(None))
    part = remote().target().with_name("field 1.tif.part")
    kept = part.stat().st_size
    assert 0 < kept <= 150_000
    assert not remote().target().exists()
    held.asked.clear()
    assert fetch(remote(None)).read_bytes() == CONTENT
    assert held.asked == [("/set/plate/field%201.tif", f"bytes={kept}-")]
    assert left_in(cache_folder()) == ["field 1.tif"]


def test_a_file_that_changed_meanwhile_is_downloaded_from_its_beginning(held: Server) -> None:
    held.cut = {"/set/plate/field%201.tif": [150_000, 0]}
    with pytest.raises(InputError):
        fetch(remote(None))
    held.files["/set/plate/field%201.tif"] = CONTENT[::-1]
    assert fetch(remote(None)).read_bytes() == CONTENT[::-1]


def test_a_server_that_does_not_tell_versions_apart_is_asked_for_the_whole(held: Server) -> None:
    held.versioned = False
    held.cut = {"/set/plate/field%201.tif": [150_000, 0]}
    with pytest.raises(InputError):
        fetch(remote(None))
    held.asked.clear()
    assert fetch(remote(None)).read_bytes() == CONTENT
    assert held.asked == [("/set/plate/field%201.tif", None)]


def test_a_part_that_was_complete_is_taken_as_it_is(held: Server) -> None:
    part = remote().target().with_name("field 1.tif.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    part.with_name(part.name + ".version").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    assert fetch(remote()).read_bytes() == CONTENT


def test_a_file_with_the_wrong_checksum_is_refused_and_not_kept(held: Server) -> None:
    held.files["/set/plate/field%201.tif"] = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=r"field 1\.tif .*does not have its published checksum.*is not kept"):
        fetch(remote())
    assert left_in(cache_folder()) == []


def test_a_missing_file_is_named_with_its_address(server: Server) -> None:
    with pytest.raises(
        MissingFile, match=r"There is no file http://127.*/set/plate/field%201\.tif \(the server answered 404"
    ):
        fetch(remote())
    assert left_in(cache_folder()) == []


def test_without_network_the_message_names_address_folder_and_what_to_do(server: Server) -> None:
    server.close()
    with pytest.raises(InputError) as refusal:
        fetch(remote())
    message = str(refusal.value)
    for word in (server.url, "Check the network", str(remote().target()), "LATENTCELL_CACHE", "LATENTCELL_MIRROR"):
        assert word in message
    # by hand, then
    remote().target().parent.mkdir(parents=True, exist_ok=True)
    remote().target().write_bytes(CONTENT)
    assert fetch(remote()).read_bytes() == CONTENT


def test_a_path_that_leaves_the_cache_is_not_followed(server: Server) -> None:
    for path in ("../escaped.csv", "/etc/passwd", "a/../../b", "..\\b", ""):
        with pytest.raises(InputError, match="leads out of its folder"):
            fetch(Remote("set", path, "https://example.org"))
    assert server.asked == []


def test_two_processes_do_not_write_one_file(held: Server) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock = remote().target().with_name("field 1.tif.part.lock")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"Another process is downloading field 1\.tif"):
            fetch(remote())
    assert fetch(remote()).read_bytes() == CONTENT


def test_the_cache_is_the_users_folder_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTCELL_CACHE", raising=False)
    assert cache_folder().parts[-1].lower() == "latentcell" or "latentcell" in os.fspath(cache_folder())
    monkeypatch.setenv("LATENTCELL_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
