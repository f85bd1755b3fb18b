"""Past conversations on disk: SQLite, without Textual and without the network."""
