"""Data in: opening, labels, draws, decoding, resizing, screening; start at `files.open_data`."""
