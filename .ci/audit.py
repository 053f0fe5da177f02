"""Look for known vulnerabilities in what is installed; skip, with one line, what cannot be asked.

python .ci/audit.py: exits with 1 if a package has one, or if pip-audit fails in a way that is not a
lost connection.
"""

import json
import subprocess
import sys
from typing import Any

UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ServiceError", "Max retries")
COMMAND = ["pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]


def main() -> int:
    """Run pip-audit on this environment and judge what it says."""
    command = [sys.executable, "-m", *COMMAND, "--timeout", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    code, lines = judge(done.stdout, done.stderr)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return code


def judge(output: str, talk: str) -> tuple[int, list[str]]:
    """Return the exit code and what to print, of what pip-audit wrote to stdout and stderr."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in talk for word in UNREACHABLE):
            return 0, ["pip-audit: skipped, its data cannot be reached"]
        return 1, ["pip-audit: failed", *talk.splitlines()[-20:]]
    asked = [package for package in packages if "vulns" in package]
    if packages and not asked:
        return 0, ["pip-audit: skipped, its data cannot be reached"]
    found = [line for package in asked for line in _vulnerabilities(package)]
    unknown = len(packages) - len(asked)
    beside = f", {unknown} unknown to it" if unknown else ""
    return int(bool(found)), [*found, f"pip-audit: {len(found)} in {len(asked)} packages{beside}"]


def _vulnerabilities(package: dict[str, Any]) -> list[str]:
    """Return a line of each, with the version that mends it."""
    name = f"{package['name']} {package['version']}"
    return [
        f"{name}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'no version yet'}"
        for each in package["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main())
