"""The page and the API. Only this package imports gradio; none of it imports torch or transformers.

Read in this order:
    server                      serves the page
    page                        the frame: header, list of runs, which page is shown
    navigation, boundary        what comes from the browser (URL, clicks), and errors on their way to it
    new_run                     page "New run"; form makes its fields, data_section its first section,
                                draft is what is known of the run that it describes, uploads stores files
    run_page, run_buttons       page "Run"; live is a run that a tab is watching
    compare_page                page "Compare": ask_panel is one prompt, heldout_panel all held-out ones,
                                votes_panel blind votes, compare_settings what is compared; downloads are files
    publish_page                page "Publish"
    api                         named endpoints for programs
    theme, style.css            colours, type, layout; page.js and data.js run in the browser
    render/                     values to HTML
"""

from qlora_space.app.ui.server import serve

__all__ = ["serve"]
