"""What a model may call: own tools, and those of MCP servers. No screen; asking for a yes is the caller's."""
