"""How a tile is seen: symmetries, colours, resolution."""
