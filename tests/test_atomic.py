import signal
import subprocess
import sys
import tempfile

import pytest

from supernet.atomic import check_writable, lock_folder, remove_leftovers

HOLD = "import sys, time; from supernet.atomic import lock_folder; l = lock_folder(sys.argv[1]); l.__enter__()"


@pytest.mark.parametrize("inside", [True, False])
def test_a_lock_is_refused_to_others_and_leaves_nothing_behind(tmp_path, inside):
    folder = tmp_path / "a" / "run"
    with lock_folder(folder, inside):
        with pytest.raises(BlockingIOError, match="run is in use by this process"):
            with lock_folder(folder, inside):
                pass
        done = subprocess.run([sys.executable, "-c", HOLD, folder], capture_output=True, text=True)
        assert not inside or "run is in use by process" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = f"{HOLD}; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on "):
            with lock_folder(tmp_path):
                pass
        process.send_signal(signal.SIGKILL)
    with lock_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/run cannot be written: .*file is a file"):
        check_writable(tmp_path / "file" / "run")

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"run cannot be written: Read-only file system \("):
        check_writable(tmp_path / "run")


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    (tmp_path / ".run.abcdefgh").mkdir()
    for name in (".last.ckpt.12345678", "last.ckpt", ".last.ckpt.mine", ".runs.abcdefgh"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "last.ckpt")
    remove_leftovers(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".last.ckpt.mine", ".runs.abcdefgh", "last.ckpt"]
