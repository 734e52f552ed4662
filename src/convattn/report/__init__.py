"""One self-contained HTML page about a model: how it learned, what it confuses, where it looks, what it costs."""
