"""The colours of classes, the same in every file and picture: told apart on H&E, and by most who see colours differently."""

from collections.abc import Sequence

Colour = tuple[int, int, int]

# Okabe and Ito's (2008) but for their black and grey, which tissue and glass hide, and four more for long lists.
COLOURS: tuple[Colour, ...] = (
    *((0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0)),
    *((128, 62, 117), (147, 170, 0), (127, 24, 13), (35, 44, 122)),
)


def colours_of(classes: Sequence[str]) -> dict[str, Colour]:
    """RGB of each class, by its place in the list; a list longer than `COLOURS` begins anew."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(classes)}
