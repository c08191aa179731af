"""What other libraries read: exported encoders, benchmarks, leaderboards."""
