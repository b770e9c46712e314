"""Plain values and small services that every room may use: no torch, no gradio, no Hub.

Read in this order: options, request (what is asked), facts (what was looked up), events (what happened), errors; then
inspection and comparison (what children answer), settings (where files lie), atomic (files that appear whole or not at
all), machine and processes.
"""
