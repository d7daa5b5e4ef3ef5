"""Who may have a storage file, and the room that it needs on its disk."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import iproto
from iproto import ConfigError
from iproto.storage.file import open_storage
from tests.helpers.storage_files import FILLED, contents, filled, refused, serving_file, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


FULL = "a full disk: only root can mount a small one"


# Who may have it.
@pytest.mark.parametrize("workers", [None, 2])
def test_a_file_is_served_by_one_server_at_a_time(tmp_path: Path, workers: int | None) -> None:
    path = tmp_path / "storage"
    with serving_file(path, workers) as running, running.peer() as peer:
        write(peer, 1, "mine")
        assert refused(path, workers) == (
            f"iproto: storage file {path} is in use by another server; stop that, "
            "or choose another file\n"
        )
        assert peer.read(1) == "mine"


def test_a_file_that_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    with open_storage(tmp_path / "storage"):
        assert (tmp_path / "storage").stat().st_mode & 0o777 == 0o600


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, text in (
        ("", "Is a directory"),
        ("fifo", "is not a regular file"),
        ("none/storage", "No such file or directory"),
        ("dangling", "is a symbolic link; name the file that it leads to"),
    ):
        with pytest.raises(ConfigError, match=text):
            open_storage(tmp_path / name)
    assert refused(tmp_path) == f"iproto: cannot use storage file {tmp_path}: Is a directory\n"


def test_a_file_that_others_can_write_to_or_name_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        open_storage(tmp_path / "link")
    assert victim.read_bytes() == b""
    for mode in (0o666, 0o620, 0o602):
        victim.chmod(mode)
        with pytest.raises(ConfigError, match=f"has mode {mode:04o}.*chmod 600"):
            open_storage(victim)
    victim.chmod(0o600)
    os.link(victim, tmp_path / "other name")
    with pytest.raises(ConfigError, match="has 2 names"):
        open_storage(victim)
    os.unlink(tmp_path / "other name")
    if os.geteuid() == 0:
        os.chown(victim, 12345, -1)
        with pytest.raises(
            ConfigError, match="belongs to user 12345, and the server runs as user 0"
        ):
            open_storage(victim)
        os.chown(victim, 0, -1)
    assert victim.read_bytes() == b""
    with open_storage(victim) as file:
        assert file.storage.read(0) == b""


def test_permission_is_denied_in_one_line(tmp_path: Path) -> None:
    through: tuple[str, ...] = ()
    if os.geteuid() == 0:
        through = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if shutil.which("setpriv") is None or subprocess.call([*through, "true"]):
            pytest.skip("permissions: root has them all, and cannot be rid of them here")
    path = filled(tmp_path / "storage")
    path.chmod(0o444)
    before = path.read_bytes()
    line = f"iproto: cannot use storage file {path}: Permission denied\n"
    assert refused(path, through=through) == line
    assert path.read_bytes() == before
    tmp_path.chmod(0o555)
    missing = tmp_path / "other"
    assert refused(missing, through=through) == line.replace(str(path), str(missing))
    tmp_path.chmod(0o755)
    assert not missing.exists()


# Room.
def test_no_room_is_an_error_at_the_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """By a limit on files' sizes, for a file that is new, one that is empty, one that grows."""
    new, empty, small = tmp_path / "new", tmp_path / "empty", filled(tmp_path / "small")
    empty.touch()
    before = small.read_bytes()

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for path in (new, empty):
        line = refused(path, preexec_fn=limit(100_000))
        assert line == f"iproto: cannot use storage file {path}: File too large\n"
    assert "File too large" in refused(small, 2, preexec_fn=limit(len(before)))
    assert not new.exists()
    assert empty.read_bytes() == b""
    assert small.read_bytes() == before
    assert contents(small) == FILLED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one storage file, but not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    size = iproto.Storage.size_for(1) * 3 // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(FULL)
    if done.returncode:
        pytest.skip(FULL)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing_behind(small_disk: Path) -> None:
    first, second = filled(small_disk / "first"), small_disk / "second"
    line = refused(second)
    assert line == f"iproto: cannot use storage file {second}: No space left on device\n"
    assert not second.exists()
    before = first.read_bytes()
    with pytest.raises(ConfigError, match="No space left on device"):
        open_storage(first, 100)
    assert first.read_bytes() == before
    assert contents(first) == FILLED


def test_holes_of_a_restored_copy_get_their_room(tmp_path: Path) -> None:
    path = tmp_path / "storage"
    data = filled(tmp_path / "original").read_bytes()
    with path.open("wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), 4096):
            page = data[at : at + 4096]
            if page.strip(b"\0"):
                file.seek(at)
                file.write(page)
    assert contents(path) == FILLED
    assert path.stat().st_blocks * 512 >= len(data)


@pytest.mark.parametrize("error", [None, 95, 22])
def test_room_is_had_without_the_systems_help_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    """As on macOS, and on file systems that cannot allocate."""

    def fail(*_arguments: int) -> None:
        assert error is not None
        raise OSError(error, os.strerror(error))

    if error is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    path = filled(tmp_path / "storage")
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    with open_storage(path, 5):
        assert path.stat().st_size == iproto.Storage.size_for(5)
    assert contents(path) == FILLED
