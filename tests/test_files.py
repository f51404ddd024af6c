import contextlib
import errno
import os

import pytest

from flowjax._files import replacing


def test_the_new_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as part:
        part.write_text("one")
        assert not path.exists()
        assert part.suffix == ".txt"
    assert path.read_text() == "one"
    with contextlib.suppress(KeyError), replacing(path) as part:
        part.write_text("tw")
        raise KeyError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["x.txt"]


def test_links_are_followed_and_the_mode_is_that_of_a_new_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "link") as part:
        part.unlink()
        part.touch(mode=0o600)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written_are_noticed_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for path, code in ((tmp_path, errno.EISDIR), (tmp_path / "file" / "x", errno.ENOTDIR), ("/proc/x", errno.ENOENT)):
        with pytest.raises(OSError, match=os.strerror(code)), replacing(path):
            pytest.fail("began to work")
