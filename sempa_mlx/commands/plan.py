"""`sempa-mlx train --dry-run`: settings, data, memory and time; no weight is read."""

from dataclasses import asdict

from sempa_mlx import runtime
from sempa_mlx.config_resolve import Resolved
from sempa_mlx.console import Console
from sempa_mlx.run.estimate import CPU_SHARE, Estimate, estimate_run
from sempa_mlx.run.inputs import RunData
from sempa_mlx.training.memory import SMALLER


def show_plan(console: Console, resolved: Resolved, data: RunData) -> None:
    """Print what a run would do, and take."""
    config, report = resolved.config, data.report
    with console.working("counting tokens"):
        estimate = estimate_run(config, data)
    machine, shared = runtime.machine(), estimate.shared_tokens
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped if count)
    lines = {
        "settings": resolved.origin,
        "model": estimate.model,
        "device": f"{machine.device}, {machine.name}, {machine.memory_gb:.0f} GB",
        "data": f"{data.train.label} ({report.format}): {report.rows} rows read, {report.kept} kept"
        + (f" (dropped: {dropped})" if dropped else ""),
        "too long": f"{estimate.num_too_long} rows of more than {config.model.max_tokens} tokens",
        "dev": f"{data.dev.label}: {len(data.dev_task.pairs)} pairs",
        "steps": f"{estimate.steps} of {config.train.batch_size} pairs; {estimate.tokens:,} tokens "
        "to train on" + (f", {shared} of each prompt shared" if shared else ""),
        "memory": _memory(estimate),
        "time": _time(estimate),
        "output": config.output.path,
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        console.result(f"{name.ljust(width)}  {text}")
    console.say("nothing was started")
    limit = runtime.memory_limit_gb()
    if estimate.memory_gb is not None and estimate.memory_gb > limit:
        console.warn(f"this process may take {limit:.1f} GB; {SMALLER}")
    console.document(
        {
            "config": config.model_dump(mode="json"),
            "sources": resolved.sources,
            "data": {
                "path": str(data.train.path),
                "rows": report.rows,
                "kept": report.kept,
                "dropped": dict(report.dropped),
            },
            "dev_pairs": len(data.dev_task.pairs),
            "steps": estimate.steps,
            "estimate": asdict(estimate) | {"seconds": estimate.seconds},
        }
    )


def _memory(estimate: Estimate) -> str:
    if estimate.memory_gb is None:
        return "not estimated for mixtures of experts"
    return f"about {estimate.memory_gb:.1f} GB at the peak of a step (from shapes, no weight read)"


def _time(estimate: Estimate) -> str:
    if estimate.operations is None or estimate.gflops is None or estimate.seconds is None:
        return "not estimated for mixtures of experts"
    work = f"{estimate.operations / 1e12:.1f} TFLOP"
    rate = f"{estimate.gflops:.0f} GFLOP/s, the rate of a matrix product measured now"
    if runtime.is_gpu():
        return f"at least {_clock(estimate.seconds)}: {work} at {rate}"
    return f"about {_clock(estimate.seconds)}: {work} at {CPU_SHARE:.0%} of {rate}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
