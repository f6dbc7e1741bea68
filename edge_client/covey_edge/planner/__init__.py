"""`covey plan`: which task file for this bundle, this data and so many bytes, found by short pilots on a sample.

Pure cores with a thin shell around them: `space` (what can be tried), `sizes` (what fits the budget), `halving` (what
to try next, and what to recommend), `taskfile` (the file). `deal` makes devices of a sample, `pilot` trains on them,
`crew` runs pilots side by side, `book` keeps what was found, `run` drives, `chart` draws.
"""
