"""The capacity planner's commands: look at a trace, replay, simulate and plan it, compare settings.

May import `control`, `terminal` and `started` of fairlead/commands/ (the first for files of tokens
and certificates), the client's `channels`, and every package below fairlead/.
"""
