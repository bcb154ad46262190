"""Pool replicas, emulated or started as a program, and how dispatchers find their addresses.

May import `endpoints`, `settings`, `capacity`, `emulator` and `errors`.
"""
