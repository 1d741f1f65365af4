"""How near two boundaries' pixels must lie. It imports nothing, so that processes that pair start at once."""


def half_widths(height: int, width: int) -> list[int]:
    """The disc of the tolerance: how far it reaches to either side, in the rows 0, 1, 2, ... from its middle.

    In integers: 0.75 % of a 720x960 image's diagonal is 9 pixels exactly, and no rounding may decide on that.
    """
    limit = 9 * (height**2 + width**2)  # of 160000 (x^2 + y^2), for (3 / 400)^2 is 9 / 160000
    reach = int((limit / 160_000) ** 0.5) + 1
    rows = ([x for x in range(reach + 1) if 160_000 * (x * x + y * y) <= limit] for y in range(reach + 1))
    return [row[-1] for row in rows if row]
