"""One self-contained HTML page about a trial, and one about two trials compared."""
