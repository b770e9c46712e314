"""A few small line icons as inline SVG: they take the colour of the text and need no font."""

_PATHS = {
    "waiting": '<circle cx="8" cy="8" r="5.5" stroke-dasharray="2 2.3"/>',
    "working": '<circle cx="8" cy="8" r="5.5" opacity=".35"/><path d="M8 2.5a5.5 5.5 0 0 1 5.5 5.5"/>',
    "done": '<path d="M3 8.5 6.5 12 13 4.5"/>',
    "error": '<path d="M4 4l8 8M12 4l-8 8"/>',
    "warning": '<path d="M8 2.5 14.2 13H1.8Z"/><path d="M8 6.5v3M8 11.3v.1"/>',
    "info": '<circle cx="8" cy="8" r="5.8"/><path d="M8 7.3V11M8 5v.1"/>',
    "stopped": '<rect x="4" y="4" width="8" height="8" rx="1"/>',
    "missing": '<circle cx="8" cy="8" r="5.5"/>',
    "copy": '<rect x="5.5" y="5.5" width="8" height="8" rx="1.5"/><path d="M10.5 3H4a1.5 1.5 0 0 0-1.5 1.5V11"/>',
    "chip": '<rect x="4.5" y="4.5" width="7" height="7" rx="1"/>'
    '<path d="M6.5 2v2M9.5 2v2M6.5 12v2M9.5 12v2M2 6.5h2M2 9.5h2M12 6.5h2M12 9.5h2"/>',
    "person": '<circle cx="8" cy="5.5" r="2.7"/><path d="M2.8 13.5c.6-2.8 2.7-4 5.2-4s4.6 1.2 5.2 4"/>',
}


def icon(name: str) -> str:
    """One icon; it is decoration, the word beside it carries the meaning."""
    return (
        f'<svg class="icon icon-{name}" viewBox="0 0 16 16" aria-hidden="true">{_PATHS[name]}</svg>'
    )
