"""Columns of a tile's row in a prediction, beside those of `csat.columns`; and those of a row that says what was written."""

FRAME = "frame"  # str: JSON of the slide's SlideFrame; "" where the slide cannot be opened
READER, NETWORK = "reader", "network"  # str: which process read, and which answered
# What a tile says of the cells of its slide's map, see `csat.prediction.slide_maps.cells_of`: uint8 values, as bytes.
HEAT, LABELS = "heat", "labels"
AT = "_at"  # HEAT + AT: int32 [5], where they lie in the map: first row, first column; and their channels, rows, columns
AT_SIZE = 5

# Of a part: its slide, its positions [first, stop), how many tiles came to which end, seconds of each stage, and who.
SLIDE_INDEX, FIRST, STOP = "slide_index", "first", "stop"
BYTES, OUTLINER, OUTLINE_S = "bytes", "outliner", "outline_s"
NUCLEI, TILES = "nuclei", "tiles"  # tables of a part
