"""What is measured, and against what. Each module writes its own section of docs/benchmarks.md."""
