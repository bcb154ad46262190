"""Pool replicas, emulated or started as a program, and how dispatchers find their addresses.

May import `dashboard`, `status`, `control`, `endpoints`, `settings`, `capacity`, `emulator`,
`server_metrics`, `site_logs`, `head_actor` and `errors`.
"""
