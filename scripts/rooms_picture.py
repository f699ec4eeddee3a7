"""The rooms as an SVG: layers from bottom to top, and the arrows from which all others follow."""

from __future__ import annotations

from itertools import pairwise

CAPTIONS = {
    "audit": "what is wrong with data",
    "base": "errors, exits, terminal, pages",
    "batching": "pairs to steps",
    "checkpoints": "state, whole or not there",
    "cli": "orpo-dist",
    "compare": "judged by eye",
    "config": "every setting once",
    "data": "rows to token ids",
    "engines": "processes that act as one",
    "ensembles": "many models as one",
    "evaluation": "which is better",
    "generation": "answers",
    "launch": "presets, SLURM",
    "models": "weights and adapters",
    "planning": "what fits, how fast",
    "runs": "the run folder",
    "scoring": "log-probs and the loss",
    "sweeps": "many runs, on Ray",
    "training": "a config to a model",
    "upstream": "private parts of others",
}
WIDTH, BOX, ROW, HIGH, GAP, EDGE = 760, 172, 78, 44, 24, 24  # pixels
PULL = 0.2  # of rooms towards the middle
STYLE = """
  :root { --ground: #fbfaf8; --box: #ffffff; --line: #c9c3ba; --text: #24211d; --quiet: #6f6a62;
          --arrow: #9a7b4f; }
  @media (prefers-color-scheme: dark) {
    :root { --ground: #1b1d21; --box: #262a30; --line: #444a54; --text: #eceae6; --quiet: #a2a6ad;
            --arrow: #c9a36a; } }
  .ground { fill: var(--ground) } .box { fill: var(--box); stroke: var(--line) }
  .arrow { fill: none; stroke: var(--arrow); stroke-width: 1.5 } .head { fill: var(--arrow) }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
         text-anchor: middle; fill: var(--text); font-size: 14px; font-weight: 600 }
  .quiet { fill: var(--quiet); font-size: 11px; font-weight: 400 }
"""

Arrows = dict[str, set[str]]
Bend = tuple[str, str, int]  # where an arrow from one room to another passes a layer
Place = str | Bend


def picture(layers: list[list[str]], arrows: Arrows, modules: dict[str, int]) -> str:
    """layers: the rooms, from top to bottom. modules: how many each room has."""
    rows, links = _routed(layers, _direct(arrows))
    across = _across(_ordered(rows, links), links)
    down = {place: EDGE + ROW * level for level, row in enumerate(rows) for place in row}
    drawn = [_arrow(one, other, across, down) for one, other in links]
    drawn += [_box(room, across[room], down[room], modules[room]) for row in layers for room in row]
    height = ROW * (len(rows) - 1) + HIGH + 2 * EDGE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            "<title>The rooms of orpo_dist, each on what it imports</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="head" d="M0 0.5 L8 4 L0 7.5 z"/>'
            "</marker></defs>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="12"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _direct(arrows: Arrows) -> list[tuple[str, str]]:
    """The arrows that are not also a way over other rooms."""

    def below(room: str) -> set[str]:
        return arrows[room].union(*map(below, arrows[room]))

    return [
        (room, other)
        for room in sorted(arrows)
        for other in sorted(arrows[room])
        if not any(other in below(between) for between in arrows[room])
    ]


def _routed(
    layers: list[list[str]], direct: list[tuple[str, str]]
) -> tuple[list[list[Place]], list[tuple[Place, Place]]]:
    """Rows with a bend for every arrow that passes them, and links from each row to the next."""
    level = {room: number for number, row in enumerate(layers) for room in row}
    rows: list[list[Place]] = [list(row) for row in layers]
    links: list[tuple[Place, Place]] = []
    for room, other in direct:
        if room not in level:
            continue  # above the layers: the front door
        bends: list[Place] = [(room, other, at) for at in range(level[room] + 1, level[other])]
        for at, bend in enumerate(bends, level[room] + 1):
            rows[at].append(bend)
        links += pairwise([room, *bends, other])
    return rows, links


def _ordered(rows: list[list[Place]], links: list[tuple[Place, Place]]) -> list[list[Place]]:
    """Each row in the order of what it is linked to, swept down and up until few links cross."""
    best, fewest = rows, _crossings(rows, links)
    for sweep in range(24):
        rows = [list(row) for row in rows]
        downwards = sweep % 2 == 0
        steps = range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1)
        for at in steps:
            fixed = rows[at - 1] if downwards else rows[at + 1]
            near = _neighbours(links, downwards)
            rows[at].sort(key=lambda place: _mean([fixed.index(n) for n in near.get(place, [])]))
        if (crossings := _crossings(rows, links)) < fewest:
            best, fewest = rows, crossings
    return best


def _neighbours(links: list[tuple[Place, Place]], above: bool) -> dict[Place, list[Place]]:
    found: dict[Place, list[Place]] = {}
    for one, other in links:
        found.setdefault(other if above else one, []).append(one if above else other)
    return found


def _mean(places: list[int]) -> float:
    return sum(places) / len(places) if places else 0.0


def _crossings(rows: list[list[Place]], links: list[tuple[Place, Place]]) -> int:
    at = {place: number for row in rows for number, place in enumerate(row)}
    level = {place: number for number, row in enumerate(rows) for place in row}
    return sum(
        level[a] == level[c] and (at[a] - at[c]) * (at[b] - at[d]) < 0
        for number, (a, b) in enumerate(links)
        for c, d in links[:number]
    )


def _across(rows: list[list[Place]], links: list[tuple[Place, Place]]) -> dict[Place, float]:
    """The middle of every place: near what it is linked to, and clear of its neighbours."""
    across = {place: WIDTH / 2 for row in rows for place in row}
    near: dict[Place, list[Place]] = {}
    for one, other in links:
        straight = 1 + 2 * (isinstance(one, tuple) + isinstance(other, tuple))
        near.setdefault(one, []).extend([other] * straight)
        near.setdefault(other, []).extend([one] * straight)
    for _ in range(300):
        for row in rows:
            for place in row:
                if linked := near.get(place):
                    mean = sum(across[other] for other in linked) / len(linked)
                    across[place] = mean + PULL * (WIDTH / 2 - mean) * isinstance(place, str)
            _spread(row, across)
    return across


def _spread(row: list[Place], across: dict[Place, float]) -> None:
    """Push places apart, keep their order and, as far as the picture allows, their middle."""
    wanted = [across[place] for place in row]
    found = list(wanted)
    for at in range(1, len(row)):
        found[at] = max(found[at], found[at - 1] + _apart(row[at - 1], row[at]))
    shift = sum(w - f for w, f in zip(wanted, found, strict=True)) / len(row)
    left, right = EDGE + _half(row[0]), WIDTH - EDGE - _half(row[-1])
    shift = min(max(shift, left - found[0]), right - found[-1])
    across.update(zip(row, (f + shift for f in found), strict=True))


def _half(place: Place) -> float:
    return BOX / 2 if isinstance(place, str) else 0


def _apart(one: Place, other: Place) -> float:
    return _half(one) + _half(other) + GAP


def _arrow(one: Place, other: Place, across: dict[Place, float], down: dict[Place, int]) -> str:
    """A curve from the foot of one place to the head of the other; straight past a bend's row."""
    x, y, to_x, to_y = across[one], down[one] + HIGH, across[other], down[other]
    middle = (y + to_y) / 2
    begin = f"{y}" if isinstance(one, str) else f"{down[one]} V{y}"
    head = ' marker-end="url(#head)"' if isinstance(other, str) else ""
    return (
        f'<path class="arrow" d="M{x:.0f} {begin} C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} '
        f'{to_x:.0f} {to_y}"{head}/>'
    )


def _box(room: str, middle: float, top: int, modules: int) -> str:
    caption = CAPTIONS.get(room, f"{modules} modules")
    return (
        f'<rect class="box" x="{middle - BOX / 2:.0f}" y="{top}" width="{BOX}" height="{HIGH}" '
        f'rx="7"/><text x="{middle:.0f}" y="{top + 19}">{room}</text>'
        f'<text class="quiet" x="{middle:.0f}" y="{top + 35}">{caption}</text>'
    )
