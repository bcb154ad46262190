"""The capacity planner's commands: look at a trace, replay, simulate and plan it, compare settings.

May import `terminal` and `started` of fairlead/commands/, the client's `channels`, and every
package below fairlead/.
"""
