"""No telemetry: work on local files asks no other machine anything, not even for an address."""

import json
import os
import subprocess
import sys

import pytest

from tests.command import training, write_inputs

# Offline mode is off, so that a library that wanted to would go out.
WATCHED = """
import json, socket, sys
tried = []

def noted(kind):
    def refuse(*args, **kwargs):
        tried.append([kind, repr(args[-2:])])
        raise OSError("watched")
    return refuse

socket.getaddrinfo = noted("getaddrinfo")
socket.gethostbyname = noted("gethostbyname")
socket.socket.connect = noted("connect")
socket.socket.connect_ex = noted("connect_ex")
socket.socket.sendto = noted("sendto")

from sempa_mlx.__main__ import run

for command in json.loads(sys.argv[1]):
    sys.argv = ["sempa-mlx", "--quiet", *command]
    try:
        run()
    except SystemExit as end:
        assert not end.code, command
sys.stderr.write(json.dumps(tried))
"""


@pytest.mark.unmeasured
def test_work_on_local_files_makes_no_connection(tmp_path):
    folder = write_inputs(tmp_path)
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    commands = [
        [*training(folder), "--adapter-path", run],
        ["embed", folder / "dev.tsv", "--adapter-path", run],
        ["export", "--to", "encoder", "--adapter-path", run, "--out", out],
        ["report", run],
        ["doctor"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands, default=str)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []
