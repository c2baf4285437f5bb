"""From records to what a reader sees: statistics, a comparison, a table, a page.

Nothing here trains or needs torch: a results file made elsewhere is enough.
"""
