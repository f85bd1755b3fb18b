"""Conversations to files and back: our own JSON with all branches, Markdown and HTML of one, and what others write."""
