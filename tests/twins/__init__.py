"""Two roads to one answer, to their ends: policies by the oracle; rows, tables, maps and programs by the kernel.

``document``: a scene as a scenario that ``yett test`` replays. ``proof``: both engines asked, differences found,
what was concluded counted. ``reduction``: the smallest scenario that still differs. ``volume``: many seeds at once.
"""
