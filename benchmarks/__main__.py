"""All benchmarks, or those named: `python -m benchmarks [NAME …]`."""

from benchmarks.harness import run_benchmarks

if __name__ == "__main__":
    run_benchmarks()
