"""The one place that reads settings files and environment variables, and checks that all fits.

May import `endpoints`, `capacity`, `emulator`, `site_logs` and `errors`.
"""
