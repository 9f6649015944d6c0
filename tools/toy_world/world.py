"""The toy world: every concept has its own look, and a scene is stuff regions with things on top.

A *look* is an ordered pair of colours, a texture and, for things, a shape. Words of one meaning share a concept and
its look. Scenes are drawn in batches on native pixels. All randomness comes from the generator in the arguments.

Shape legend: B scenes, S slots (regions of one scene, painted in order: stuff first, then things), height and width in
native pixels.
"""

import math
from collections.abc import Iterable

import torch

SYNONYMS = [
    [
        'person',
        'body',
        'person in shirt',
        'person in jeans',
        'person in dress',
        'person in sweater',
        'person in skirt',
        'person in jacket',
        'people',
        'people in shirt',
        'people in jeans',
        'people in dress',
        'people in sweater',
        'people in skirt',
        'people in jacket',
    ],
    ['tvmonitor', 'tv monitor', 'television monitor', 'television', 'tv', 'televisionreceiver'],
    ['aeroplane', 'airplane'],
    ['motorbike', 'motorcycle'],
    ['sofa', 'couch'],
    ['cloud', 'clouds'],
    ['cat', 'kitten'],
    ['sand', 'sands'],
    ['stair', 'stairs'],
    ['rail', 'railing'],
    ['shelf', 'shelves'],
    ['windowpane', 'window'],
]
EXTRA_WORDS = ['kitten']  # words of the world that no benchmark asks for
STUFF = """
background bedclothes branch bridge building bush cabinet cardboard carpet ceiling ceilingtile cloth clothes cloud
counter countertop cupboard curtain desk dirt dirttrack door earth fence field floor floormarble floorstone floortile
floorwood fog food fruit furniture glass grandstand grass gravel ground hill house lake land leaves mat metal mirror
moss mountain mud net paper path pavement pier plant plastic platform playingfield rail railroad river road rock roof
rug runway salad sand sea shelf sidewalk sky skyscraper snow solid stage stair stairway step stone straw structural
swimmingpool table tent terrain textile towel track tree vegetable vegetation wall wallbrick wallconcrete wallpanel
wallstone walltile wallwood water waterdrops waterfall windowpane windowblind wood
""".split()
PALETTE = (
    torch.tensor(
        [
            (245, 245, 245),
            (25, 25, 25),
            (130, 130, 130),
            (220, 35, 35),
            (110, 10, 25),
            (245, 130, 20),
            (130, 80, 35),
            (250, 225, 50),
            (130, 130, 20),
            (150, 235, 60),
            (20, 145, 55),
            (5, 70, 45),
            (10, 140, 140),
            (85, 225, 235),
            (100, 165, 250),
            (30, 60, 220),
            (15, 15, 100),
            (120, 30, 160),
            (235, 60, 220),
            (250, 165, 190),
            (220, 185, 130),
        ]
    )
    / 255.0
)
TEXTURES = ('stripes 0', 'stripes 45', 'stripes 90', 'stripes 135', 'checker 0', 'checker 45', 'dots', 'grid')
_ANGLE = torch.tensor([0.0, 45.0, 90.0, 135.0, 0.0, 45.0, 0.0, 0.0]) * math.pi / 180
_FAMILY = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
SHAPES = ('ellipse', 'rectangle', 'diamond', 'triangle', 'cross', 'octagon')
_LOOK_SEED = 7


def concept_of(word: str) -> str:
    """Return the concept of a word; synonyms and spellings of a name have the same concept."""
    for group in SYNONYMS:
        if word in group:
            word = group[0]
    for suffix in ('-other', '-stuff'):
        word = word.removesuffix(suffix)
    return word.replace(' ', '').replace('-', '')


class World:
    """The looks of all concepts behind words, and the drawing of scenes.

    Args:
        words: every word of the world. The looks depend on the set of words alone.

    Attributes:
        words (list of str): V words, sorted.
        concepts (list of str): C concepts, sorted.
        index (dict): concept -> its place in `concepts`.
        concept_of_word (tensor): (V, ) places in `concepts`.
        is_stuff (tensor): (C, ) bool.
        color_a, color_b (tensors): (C, 3), the two colours of each concept, 0..1.
        texture, shape (tensors): (C, ) places in TEXTURES and SHAPES.
    """

    def __init__(self, words: Iterable[str]):
        self.words = sorted(set(words))
        self.concepts = sorted({concept_of(word) for word in self.words})
        self.index = {concept: i for i, concept in enumerate(self.concepts)}
        self.concept_of_word = torch.tensor([self.index[concept_of(word)] for word in self.words])
        self.is_stuff = torch.tensor([concept in STUFF for concept in self.concepts])
        self.color_a, self.color_b, self.texture = _spread_looks(len(self.concepts))
        self.shape = torch.arange(len(self.concepts)) % len(SHAPES)

    def draw(
        self,
        slots: torch.Tensor,
        concept_of_slot: torch.Tensor,
        generator: torch.Generator,
        period: tuple[float, float] = (4.0, 6.0),
        noise: float = 0.02,
    ) -> torch.Tensor:
        """Return drawn scenes: float images in 0..1, (B, 3, height, width).

        Args:
            slots: (B, height, width) long, slot of each pixel.
            concept_of_slot: (B, S) long, concept of each slot.
            generator: source of randomness.
            period: range of the texture's period in native pixels, drawn per slot.
            noise: standard deviation of the pixel noise, on 0..1.
        """
        size = slots.shape[1:]
        patterns = self._patterns(concept_of_slot, generator, period)
        colors = torch.cat([self.color_a[concept_of_slot], self.color_b[concept_of_slot]], -1)
        rows = slots.flatten(1)[..., None]
        pattern = patterns.gather(1, rows.expand(-1, -1, patterns.shape[-1])).unflatten(1, size)
        color = colors.gather(1, rows.expand(-1, -1, 6)).unflatten(1, size)
        share = torch.sigmoid(5 * _texture_field(pattern))[..., None]  # of the second colour
        light = pattern[..., -1:]
        image = (color[..., :3] * (1 - share) + color[..., 3:] * share) * light
        image += noise * torch.randn(image.shape, generator=generator)
        return image.clamp(0, 1).permute(0, 3, 1, 2)

    def _patterns(self, concept_of_slot, generator, period):
        """Return each slot's (B, S, 7) texture family, cos and sin of its angle, frequency, two shifts, and light."""
        texture = self.texture[concept_of_slot]

        def uniform(low, high):
            return torch.rand(concept_of_slot.shape, generator=generator) * (high - low) + low

        columns = [_FAMILY[texture].float(), _ANGLE[texture].cos(), _ANGLE[texture].sin(), 1 / uniform(*period)]
        columns += [uniform(0, 1), uniform(0, 1), uniform(0.9, 1.1)]
        return torch.stack(columns, -1)

    def layout(
        self,
        stuff: torch.Tensor,
        things: torch.Tensor,
        size: tuple[int, int],
        generator: torch.Generator,
        radius: tuple[float, float] = (0.16, 0.3),
        cells: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Return the slot of each pixel of new scenes, (B, height, width) long.

        Stuff slots divide the image: each pixel goes to the nearest of random seeds. Things are shapes on a jittered
        lattice; a later slot covers an earlier slot.

        Args:
            stuff: (B, S1) long, concepts of the stuff slots.
            things: (B, S2) long, concepts of the thing slots; a thing of -1 is left out.
            size: height and width.
            generator: source of randomness.
            radius: range of a thing's half height and half width, as a share of the shorter side.
            cells: rows and columns of the lattice; by default just enough for S2 things.
        """
        (batch, n_stuff), n_things, (height, width) = stuff.shape, things.shape[1], size
        rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        y, x = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
        seeds = rand(batch, n_stuff, 2) * torch.tensor([height, width])
        stretch = 1 + 2 * rand(batch, 2)  # regions are bands along a side, or blobs
        distance = ((y - seeds[..., 0, None, None]) * stretch[:, 0, None, None, None]) ** 2 + (
            (x - seeds[..., 1, None, None]) * stretch[:, 1, None, None, None]
        ) ** 2
        slots = distance.argmin(1)
        return slots if n_things == 0 else self._place_things(slots, n_stuff, things, generator, radius, cells)

    def _place_things(self, slots, n_stuff, things, generator, radius, cells):
        """Return the slot of each pixel with things on top of the stuff; arguments are as in `layout`."""
        (batch, height, width), n_things = slots.shape, things.shape[1]
        rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        y, x = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
        rows, columns = cells or _lattice(n_things, height / width)
        cell = rand(batch, rows * columns).argsort(1)[:, :n_things]
        center_y = (cell // columns + 0.5 + 0.5 * (rand(batch, n_things) - 0.5)) * height / rows
        center_x = (cell % columns + 0.5 + 0.5 * (rand(batch, n_things) - 0.5)) * width / columns
        extent = (rand(batch, n_things, 2) * (radius[1] - radius[0]) + radius[0]) * min(height, width)
        for i in range(n_things):
            v = (y - center_y[:, i, None, None]) / extent[:, i, 0, None, None]
            u = (x - center_x[:, i, None, None]) / extent[:, i, 1, None, None]
            inside = _inside(self.shape[things[:, i]][:, None, None], u, v) & (things[:, i] >= 0)[:, None, None]
            slots = torch.where(inside, n_stuff + i, slots)
        return slots

    def random_scenes(
        self,
        batch: int,
        size: tuple[int, int],
        generator: torch.Generator,
        stuff: tuple[int, int] = (1, 3),
        things: tuple[int, int] = (1, 4),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return training scenes: images (B, 3, height, width) in 0..1, and the concepts' shares of pixels (B, C).

        All scenes of a batch have the same number of slots.

        Args:
            batch: B.
            size: height and width.
            generator: source of randomness.
            stuff, things: least and greatest number of slots of each kind.
        """
        n_stuff = int(torch.randint(stuff[0], stuff[1] + 1, (1,), generator=generator))
        n_things = int(torch.randint(things[0], things[1] + 1, (1,), generator=generator))
        stuff_ids, thing_ids = self.is_stuff.nonzero()[:, 0], (~self.is_stuff).nonzero()[:, 0]
        stuff = stuff_ids[torch.randint(len(stuff_ids), (batch, n_stuff), generator=generator)]
        things = thing_ids[torch.randint(len(thing_ids), (batch, n_things), generator=generator)]
        slots = self.layout(stuff, things, size, generator, radius=(0.2, 0.42))
        concepts = torch.cat([stuff, things], 1)
        images = self.draw(slots, concepts, generator)
        shares = torch.zeros(batch, len(self.concepts))
        per_pixel = concepts.gather(1, slots.flatten(1))
        shares.scatter_add_(1, per_pixel, torch.full(per_pixel.shape, 1 / per_pixel.shape[1]))
        return images, shares


def _texture_field(pattern):
    """Return a field (B, height, width), above 0 in the second colour, of each pixel's pattern (see `_patterns`)."""
    family, cos, sin, frequency, shift_u, shift_v, _ = pattern.unbind(-1)
    y, x = torch.arange(pattern.shape[1])[:, None], torch.arange(pattern.shape[2])[None]
    u = torch.cos(2 * math.pi * ((x * cos + y * sin) * frequency + shift_u))
    v = torch.cos(2 * math.pi * ((y * cos - x * sin) * frequency + shift_v))
    dots_or_grid = torch.where(family == 2, u + v - 0.5, torch.maximum(u, v) - 0.5)
    return torch.where(family == 0, u - 0.2, torch.where(family == 1, 1.5 * u * v - 0.1, dots_or_grid))


def _spread_looks(count):
    """Return `count` looks that differ much: greedy farthest points among all looks with enough contrast."""
    n, t = len(PALETTE), len(TEXTURES)
    a, b, texture = torch.cartesian_prod(torch.arange(n), torch.arange(n), torch.arange(t)).unbind(1)
    contrast = (PALETTE[a] - PALETTE[b]).norm(dim=1)
    keep = (contrast > 0.45).nonzero()[:, 0]
    a, b, texture = a[keep], b[keep], texture[keep]
    points = torch.cat(
        [
            2.0 * (0.6 * PALETTE[a] + 0.4 * PALETTE[b]),
            0.7 * (PALETTE[b] - PALETTE[a]),
            0.25 * torch.nn.functional.one_hot(texture, t),
        ],
        1,
    )
    chosen = [0]
    nearest = (points - points[0]).norm(dim=1)
    for _ in range(count - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_LOOK_SEED))
    chosen = torch.tensor(chosen)[order]
    return PALETTE[a[chosen]], PALETTE[b[chosen]], texture[chosen]


def _lattice(count, aspect):
    """Return rows and columns of a lattice for `count` things; `aspect` is height / width."""
    rows = max(1, round(math.sqrt(count * aspect)))
    return rows, math.ceil(count / rows)


def _inside(shape, u, v):
    """Return whether points (u, v), in half widths and half heights, lie inside shapes; `shape` has SHAPES' indices."""
    au, av = u.abs(), v.abs()
    inside = (u**2 + v**2) < 1
    for index, test in enumerate(
        (
            torch.maximum(au, av) < 0.85,
            au + av < 1.15,
            (v < 0.85) & (v > 2 * au - 1),
            (torch.minimum(au, av) < 0.4) & (torch.maximum(au, av) < 1),
            (torch.maximum(au, av) < 0.92) & (au + av < 1.3),
        ),
        1,
    ):
        inside = torch.where(shape == index, test, inside)
    return inside
