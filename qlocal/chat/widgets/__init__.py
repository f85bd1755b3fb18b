"""What is on the screen. A widget draws and reports by messages; it asks neither its parent nor the network."""
