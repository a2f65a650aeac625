"""What another user could have put somewhere is told from who owns it, who may write to it, and what is above it."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from uqbench.runs import ownership

STRANGER = 54321


@pytest.fixture
def place():
    """A folder below one that is open to all but sticky, as /tmp is."""
    folder = Path(tempfile.mkdtemp(dir="/tmp")).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def give_away(path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def file(path, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(mode)
    return path


def test_what_is_ours_is_safe(place):
    path = file(place / "a" / "b")
    (place / "link").symlink_to("a/../a/b")
    (place / "a" / "absolute").symlink_to(place)
    for safe in (path, path.parent, place / "link", place / "a" / "absolute" / "a" / "b", place / "missing" / "x", "/"):
        assert ownership.weakness(safe) is None, safe


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o777])
def test_a_file_that_others_may_write(place, mode):
    path = file(place / "a", mode)
    assert ownership.weakness(path) == f"{path} can be written by others (mode {mode:o})"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o2775])
@pytest.mark.parametrize("below", ["", "a", "a/b/c", "missing", "../open/a"])
def test_a_folder_that_others_may_write(place, mode, below):
    file(place / "open" / "a" / "b" / "c")
    (place / "open").chmod(mode)
    weakness = ownership.weakness(place / "open" / below)
    assert weakness == f"{place / 'open'} can be written by others (mode {mode:o})"


def test_a_sticky_folder_keeps_its_users_apart_but_is_no_place_of_our_own(place):
    file(place / "shared" / "a" / "b")
    (place / "shared").chmod(0o1777)
    assert ownership.weakness(place / "shared" / "a" / "b") is None
    assert "can be written by others" in ownership.weakness(place / "shared")


def test_links_lead_to_what_is_asked_of_every_folder_on_their_way(place):
    """The first link is ours, but the one that it names lies where anybody can replace it."""
    file(place / "safe" / "target")
    (place / "open").mkdir()
    (place / "open" / "second").symlink_to(place / "safe")
    (place / "first").symlink_to("open/second")
    assert ownership.weakness(place / "first" / "target") is None
    (place / "open").chmod(0o777)
    assert f"{place / 'open'} can be written" in ownership.weakness(place / "first" / "target")
    (place / "loop").symlink_to("loop")
    assert "too many symbolic links" in ownership.weakness(place / "loop")


@pytest.mark.parametrize("name", ["open/a", "open", "link"])
def test_what_belongs_to_another_user(place, name):
    file(place / "open" / "a")
    (place / "link").symlink_to("open")
    give_away(place / name)
    path = place / ("link" if name == "link" else "open") / "a"
    assert ownership.weakness(path) == f"{place / name} belongs to user {STRANGER}"


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_folders_are_made_for_nobody_else_whatever_the_umask(place, umask):
    before = os.umask(umask)
    try:
        ownership.make_folder(place / "a" / "b" / "c", 0o700)
        ownership.make_folder(place / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert ownership.weakness(place / "a" / "b" / "c" / "x") is None
    modes = [(place / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o755 & ~umask, 0o755 & ~umask, 0o700]
