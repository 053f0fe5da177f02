"""Whether transformers finds torch, which it loads for models that this program never runs.

Tokenizers need none of it, and loading it takes as long as embedding a short file.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

MODULES = cast("dict[str, Any]", sys.modules)


class _WithoutTorch:
    """Loads transformers so that it finds no torch; once asked, it knows that for good."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find transformers, and leave all else to the others."""
        if name != "transformers" or "torch" in MODULES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_without_torch(module: ModuleType) -> None:
                MODULES["torch"] = None
                try:
                    load(module)
                finally:
                    del MODULES["torch"]  # others may find it: trackers look for it

            spec.loader.exec_module = load_without_torch  # type: ignore[method-assign]
        return spec


_FINDER = _WithoutTorch()


def leave_torch_out() -> None:
    """Let transformers find no torch in this process, if neither is loaded before it is."""
    if "transformers" not in MODULES:
        sys.meta_path.insert(0, _FINDER)


def let_torch_in() -> None:
    """Let transformers find torch after all; has to come before it is loaded."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
