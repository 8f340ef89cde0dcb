"""From slides to an ordered stream of tiles: sources, tiling, manifest, plan, reader."""
