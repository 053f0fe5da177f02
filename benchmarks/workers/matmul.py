"""The rate of a square matrix product, and what machine and packages this is."""

from worker import write_report

from sempa_mlx import runtime

write_report(
    {
        "gflops": runtime.matmul_gflops(),
        "machine": str(runtime.machine()),
        "versions": runtime.package_versions(),
    }
)
