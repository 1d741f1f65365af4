"""The distance tolerance of boundary F1. Imports nothing, so that worker processes start fast."""


def half_widths(height: int, width: int) -> list[int]:
    """Return the half-widths of the tolerance disc in rows 0, 1, 2, ... from its center.

    Computed in integers: 0.75 % of a 720x960 image's diagonal is exactly 9 pixels, which rounding could miss.
    """
    limit = 9 * (height**2 + width**2)  # of 160000 * (x^2 + y^2), because (3 / 400)^2 is 9 / 160000
    reach = int((limit / 160_000) ** 0.5) + 1
    rows = ([x for x in range(reach + 1) if 160_000 * (x * x + y * y) <= limit] for y in range(reach + 1))
    return [row[-1] for row in rows if row]
