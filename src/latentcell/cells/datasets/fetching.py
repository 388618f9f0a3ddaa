"""One file of a public data set: fetched once, continued where a download broke off, checked, kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from latentcell.errors import InputError

CACHE, MIRROR = "LATENTCELL_CACHE", "LATENTCELL_MIRROR"
# seconds without an answer or without a byte
_TIMEOUT = (20, 60)
# times that a transfer which makes progress is taken up again by itself
_TRIES = 5
# what is in the buffer when a transfer breaks off is lost
_CHUNK = 2**16
_MB = 1e6
# some hosts turn away clients that do not look like a browser
_AGENT = "Mozilla/5.0 (compatible; latentcell)"


class MissingFile(InputError):
    """The server answers, but does not have the file."""


@dataclass(frozen=True)
class Remote:
    """A file of a public data set.

    Attributes
    ----------
    dataset
        Name of the data set: its folder in the cache and on a mirror.
    path
        Place of the file below that folder, with forward slashes.
    url
        Where the original host has it.
    known_hash
        Checksum as pooch writes it (``"md5:..."`` or sha256), None where none is published.
    page
        Page for people from which the file can be had, where `url` is none.
    """

    dataset: str
    path: str
    url: str
    known_hash: str | None = None
    page: str | None = None

    def target(self) -> Path:
        """Where the file lies once fetched.

        Raises
        ------
        InputError
            If the path, which may come from a downloaded table, leaves the cache folder.
        """
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or "\\" in self.path or not path.name:
            raise InputError(f"The path {self.path!r} of {self.dataset} leads out of its folder and is not followed.")
        return cache_folder() / self.dataset / path

    def address(self) -> str:
        """Where to ask for the file: the mirror where there is one."""
        mirror = os.environ.get(MIRROR)
        return f"{mirror.rstrip('/')}/{self.dataset}/{quote(self.path)}" if mirror else self.url


def cache_folder() -> Path:
    """Folder of downloaded files: ``LATENTCELL_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("latentcell"))


def mirrored() -> bool:
    """Whether files come from a mirror."""
    return bool(os.environ.get(MIRROR))


def fetch(remote: Remote, *, quiet: bool = False, fresh: bool = False) -> Path:
    """Path of a file, downloaded if it is not there yet; plain HTTPS without credentials.

    The file appears under its name only when it is complete and its checksum, where one is known, is right. Until then
    it is ``NAME.part``, from which the next call goes on if the server still has the same version.

    Parameters
    ----------
    quiet
        Whether to leave out the progress bar, because an outer one runs.
    fresh
        Whether to download even if the file is there.

    Raises
    ------
    InputError
        If there is no connection, the server does not have the file (`MissingFile`), or the checksum is wrong.
    """
    target = remote.target()
    if fresh:
        target.unlink(missing_ok=True)
    elif target.exists() and remote.known_hash is None:
        return target
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url=remote.address(),
                known_hash=remote.known_hash,
                fname=target.name,
                path=target.parent,
                downloader=_Resuming(remote, quiet),
            )
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{target.name} from {remote.address()} does not have its published checksum ({remote.known_hash}): it was "
            f"damaged on the way or changed at the source, and is not kept. Run again; if that does not help, look at "
            f"{remote.page or remote.url} and at the notes of a newer latentcell."
        ) from error


class _Resuming:
    """Downloader for pooch that continues what an earlier call left."""

    def __init__(self, remote: Remote, quiet: bool) -> None:
        self.remote = remote
        self.quiet = quiet

    def __call__(self, url: str, output_file: str, pooch: Any = None) -> None:
        import requests

        target = self.remote.target()
        part = target.with_name(target.name + ".part")
        with _alone(part):
            for attempt in range(_TRIES):
                before = _size(part)
                try:
                    _transfer(url, part, _no_bar if self.quiet else _bar)
                    break
                except requests.RequestException as error:
                    # a transfer that gets nowhere is given up
                    if attempt + 1 == _TRIES or _size(part) <= before:
                        raise InputError(_offline(self.remote, part, error)) from error
            os.replace(part, output_file)
            _stamp(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path, bar: Callable[[str, int], AbstractContextManager[Any]]) -> None:
    """Write what is missing of a file to `part`.

    Raises
    ------
    requests.RequestException
        If there is no connection or it breaks off.
    MissingFile, InputError
        If the server refuses.
    """
    import requests

    start = _size(part) if _stamp(part).exists() else 0
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if start:
        # another version of the file is sent from its beginning
        headers |= {"Range": f"bytes={start}-", "If-Range": _stamp(part).read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        extent = response.headers.get("Content-Range", "")
        if response.status_code == 416 and extent == f"bytes */{start}":
            return
        if response.status_code == 416 or (response.status_code == 206 and not extent.startswith(f"bytes {start}-")):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError(f"the server continues at another place ({extent})")
        _refused(response, url)
        continued = response.status_code == 206
        length = extent.rpartition("/")[2] if continued else response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        _remember_version(part, response.headers)
        with part.open("ab" if continued else "wb") as out, bar(part.stem, round((total or 0) / _MB)) as update:
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                update(round(out.tell() / _MB), "MB")
    if total is not None and _size(part) != total:
        raise requests.ConnectionError(f"{_size(part):,} of {total:,} bytes came")


def _refused(response: Any, url: str) -> None:
    code = response.status_code
    if code in (403, 404, 410):
        # a public bucket answers 403 for what it does not have
        raise MissingFile(
            f"There is no file {url} (the server answered {code}). It may have moved: look at the page of the data set "
            "and at the notes of a newer latentcell."
        )
    if code not in (200, 206):
        raise InputError(f"{urlsplit(url).netloc} answered {code} to the request for {url}. Try again later.")


def _remember_version(part: Path, headers: Any) -> None:
    """Keep what tells this version of the file from another; without it nothing can be continued safely."""
    tag = headers.get("ETag", "")
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    if version:
        _stamp(part).write_text(version)
    else:
        _stamp(part).unlink(missing_ok=True)


def _stamp(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep two processes from writing one file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = part.with_name(part.name + ".lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another process is downloading {part.stem}: wait until it has finished.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _offline(remote: Remote, part: Path, error: Exception) -> str:
    kept = f"; the {_size(part) / _MB:.1f} MB that came are kept, and it goes on from there" if _size(part) else ""
    return (
        f"{part.stem} could not be downloaded from {urlsplit(remote.address()).netloc}: no connection, or it broke off "
        f"({type(error).__name__}). Check the network and run again{kept}. Or download "
        f"{remote.page or remote.address()} elsewhere and put the file at {remote.target()}. {CACHE} names another "
        f"folder than {cache_folder()} for such files, {MIRROR} a server with copies."
    )


def _bar(name: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
    from latentcell.progress import progress_bar

    return progress_bar(name, total)


def _no_bar(name: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
    return nullcontext(lambda done, words: None)
