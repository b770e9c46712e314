"""What a person uses: the page, the command line and the API, three faces of the same actions.

Read in this order:
    actions           everything a person can do, once; all faces call it
    adapters          an adapter by the name that a person gives it
    compare_requests  what a comparison loads, for a run and for an adapter on the Hub
    cli/              the command line
    ui/               the page and the API
"""
