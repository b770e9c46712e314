"""Template: from a conversation to token ids and the loss mask, as the base's chat template writes it.

Read `renderer.py` first (the whole way), then `layout.py` (literal text and slots: where the answers are),
`infer_layout.py` (how the layout is read off a probe conversation) and `loss_mask.py` (text to tokens, and
the proof of the mask). `process.py` runs templates in a child process (`child.py`); `tracer.py` and
`trace.py` find out for which contents running them can be spared. `tokenizer.py` loads the tokenizer and
its template.
"""
