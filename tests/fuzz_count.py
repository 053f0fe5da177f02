"""A pytest plugin that counts examples of hypothesis: `make fuzz` has to try 20,000 at least."""

import re

import pytest

LEAST = 20_000
_PASSED = re.compile(r"- (\d+) passing, (\d+) failing")


class Counter:
    """Adds up the examples of all tests that were not thrown away."""

    def __init__(self):
        self.examples = 0
        self.tests = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        said = _PASSED.findall(getattr(item, "hypothesis_statistics", ""))
        if call.when == "call" and said:
            self.tests += 1
            self.examples += sum(int(each) for pair in said for each in pair)
        return report

    def pytest_sessionfinish(self, session):
        if self.examples < LEAST and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        what = f"{self.examples:,} examples in {self.tests} tests of hypothesis"
        wanted = "" if self.examples >= LEAST else f"; {LEAST:,} are wanted"
        terminalreporter.write_line(what + wanted)


def pytest_configure(config):
    config.pluginmanager.register(Counter(), "fuzz-count")
