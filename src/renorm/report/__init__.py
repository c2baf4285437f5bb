"""From records to what a reader sees: statistics, a comparison as plain data, a table.

Nothing here trains or needs torch: a results file made elsewhere is enough.
"""
