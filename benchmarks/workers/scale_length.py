"""Vectors of texts of one length: how many tokens a second, after one batch to warm up."""

import time
from pathlib import Path
from typing import Any

from worker import read_job, write_report

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Embed texts that are cut to the job's length."""
    length = job["length"]
    encoder = Encoder.load(job["base"], settings=EncoderSettings(max_tokens=length))
    words = Path(job["texts"]).read_text(encoding="utf-8").split()
    count = max(1, job["tokens"] // length)
    words *= 1 + (count + 4) * length // len(words)
    # A word is a token at least, so each text is long enough to be cut.
    texts = [" ".join(words[start * length : (start + 1) * length]) for start in range(count + 4)]
    encoder.encode_counted(texts[count:])
    start, start_cpu = time.perf_counter(), time.process_time()
    encoder.encode_counted(texts[:count])
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "tokens": sum(map(len, encoder.tokenize(texts[:count]))),
        "texts": count,
    }


write_report(measure(read_job()))
