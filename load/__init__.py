"""The world outside: outcome tables, callers, replays, benchmarks, and reports people look at."""
