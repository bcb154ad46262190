"""Machines: settings, the cluster and the site a router lives in, pools and the emulated engine.

`settings` is the only place that reads files and environment variables.
"""
