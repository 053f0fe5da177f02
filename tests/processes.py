"""Processes of their own, for what a test cannot see from within."""

import subprocess
import sys


def python(*arguments, **options):
    """Run `python ARGUMENTS` to its end; its output is bytes."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **options)


def ended_process():
    """Return the number of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid
