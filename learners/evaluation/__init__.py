"""What another policy would have been worth, from decisions that one made: estimates and bounds.

May import nothing of Fairlead's. Arrays in, numbers out.
"""
