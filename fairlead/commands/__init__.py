"""What the command line's commands do and show, one file for each.

May import the client and everything below fairlead/.
"""
