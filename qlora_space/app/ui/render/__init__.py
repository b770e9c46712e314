"""Pure functions from values to escaped HTML: no gradio, no files, no state.

Read in this order:
    html                            what all share: escaping, icons, notices, tables, chips, the list of runs
    charts                          line charts and sparklines as SVG
    data, histogram, xray           section "Data": inspection, lengths, tokens
    plan, low_bit                   the card of a plan, bit widths, the quality gate
    run, samples, changes           page "Run": progress, charts, log, result, answers over time, other runs
"""
