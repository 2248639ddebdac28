"""The native backend measured against its goals: `python -m benchmarks.native --help`."""
