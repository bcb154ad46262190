"""The formats that traces come in: one file for each, found by being here.

A format says which columns it is recognised by, and how they become times and lengths. To add one,
add its file, and its line to docs/planning.md (`fairlead traces formats` prints it).
May import `form`, `said`, `files` and `fields` of load/traces/, and `errors`.
"""
