"""A disk that refuses: the k-th thing that is asked of it, once or from then on.

Counted are opening for writing, writes (of many to one file some), flush, rename and new folder
below one folder, and the writers of mlx and safetensors that are not seen from Python.
"""

import builtins
import contextlib
import errno
import io
import os
import signal
from pathlib import Path
from unittest import mock

FULL = errno.ENOSPC
BROKEN = errno.EIO


class Disk:
    """Counts the calls below a folder, and refuses some."""

    def __init__(self, root, fail_at=0, number=FULL, *, forever=False, kills=False):
        self.root, self.fail_at, self.number = os.path.realpath(root), fail_at, number
        self.forever, self.kills = forever, kills
        self.calls = []

    @property
    def has_failed(self):
        return 0 < self.fail_at <= len(self.calls)

    def ask(self, name, place):
        """Count a call; raise if it is to be refused."""
        if isinstance(place, int):
            place = Path(f"/proc/self/fd/{place}").readlink()
        place = Path(os.path.realpath(place))
        if not place.is_relative_to(self.root) or (name == "mkdir" and place.is_dir()):
            return
        self.calls.append(name)
        number = len(self.calls)
        if (
            not self.fail_at
            or number < self.fail_at
            or (number > self.fail_at and not self.forever)
        ):
            return
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.number, os.strerror(self.number))

    @contextlib.contextmanager
    def watched(self):
        """Put the disk between the program and its files while a block runs."""
        opened, opened_low = io.open, os.open

        def open_file(file, mode="r", *rest, **options):
            is_path = not isinstance(file, int)
            if is_path and set(mode) & set("wxa+"):
                self.ask("open", os.fspath(file))
                return _File(opened(file, mode, *rest, **options), self, os.fspath(file))
            return opened(file, mode, *rest, **options)

        def open_low(path, flags, *rest, **options):
            if flags & (os.O_WRONLY | os.O_RDWR) and options.get("dir_fd") is None:
                self.ask("open", path)
            return opened_low(path, flags, *rest, **options)

        with contextlib.ExitStack() as stack:
            patch = lambda *what: stack.enter_context(mock.patch.object(*what))  # noqa: E731
            patch(io, "open", open_file)
            patch(builtins, "open", open_file)
            patch(os, "open", open_low)
            for name in ("fsync", "write", "pwrite", "ftruncate"):
                patch(os, name, self._asked(name, getattr(os, name), 0))
            for name, at in (("rename", 1), ("replace", 1), ("mkdir", 0)):
                patch(os, name, self._asked(name, getattr(os, name), at))
            self._foreign_writers(patch)
            yield self

    def _asked(self, name, call, at):
        def asked_call(*given, **options):
            self.ask(name, given[at])
            return call(*given, **options)

        return asked_call

    def _foreign_writers(self, patch):
        import mlx.core as mx
        import safetensors.numpy as numpy_files
        from safetensors import SafetensorError

        save, save_file = mx.save_safetensors, numpy_files.save_file

        def save_arrays(file, *given, **options):
            if isinstance(file, str):
                try:
                    self.ask("write", file)
                except OSError as error:
                    Path(file).write_bytes(b"half")
                    raise RuntimeError("[write] Unable to write 99 bytes to file.") from error
            return save(file, *given, **options)

        def save_numpy(arrays, file, *given, **options):
            try:
                self.ask("write", file)
            except OSError as error:
                raise SafetensorError(
                    f"I/O error: {error.strerror} (os error {error.errno})"
                ) from None
            return save_file(arrays, file, *given, **options)

        patch(mx, "save_safetensors", save_arrays)
        patch(numpy_files, "save_file", save_numpy)


class _File:
    """A file whose refused write leaves half of the bytes."""

    def __init__(self, file, disk, path):
        self._file, self._disk, self._path, self._writes = file, disk, path, 0

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._writes += 1
        try:
            if self._writes & (self._writes - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                self._disk.ask("write", self._path)
        except OSError:
            self._file.write(data[: len(data) // 2] if isinstance(data, str) else bytes(data)[:1])
            raise
        return self._file.write(data)


def temporaries(folder):
    """What is left below a folder of things that were being written."""
    return [
        path
        for path in Path(folder).rglob("*")
        if path.name.startswith((".tmp-", ".sempa-tmp-", ".unpacking-"))
    ]
