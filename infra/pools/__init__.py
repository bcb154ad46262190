"""Pool replicas, emulated or started as a program, and how dispatchers find their addresses.

May import `dashboard`, `status`, `endpoints`, `settings`, `capacity`, `emulator`, `server_metrics`,
`site_logs` and `errors`.
"""
