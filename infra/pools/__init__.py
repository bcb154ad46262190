"""Pool replicas, emulated or started as a program, and how dispatchers find their addresses.

May import `endpoints`, `settings`, `capacity`, `emulator`, `server_metrics` and `errors`.
"""
