"""The toy world: every concept has a look of its own, a scene is stuff regions with things on them.

A *look* is an ordered pair of colours, a texture and, for things, a shape. Words that mean the same share a concept
and so a look. Scenes are drawn in batches on native pixels; all randomness comes from the generator that is passed.

Shape legend: B scenes, S slots (regions of one scene, painted in order: stuff first, then things), height and width in
native pixels.
"""

import math

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
EXTRA_WORDS = ['kitten']  # known to the world though no benchmark asks for them
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


def concept_of(word):
    """Return the concept that `word` names: synonyms and spellings of one name have one concept."""
    for group in SYNONYMS:
        if word in group:
            word = group[0]
    for suffix in ('-other', '-stuff'):
        word = word.removesuffix(suffix)
    return word.replace(' ', '').replace('-', '')


class World:
    """The looks of all concepts behind `words`, and how to draw them.

    Args:
        words (iterable of str): every word that the world has to know. The looks depend on the set of words alone.

    Attributes: `words` (sorted), `concepts` (sorted), `concept_of_word` (V,) index, `is_stuff` (C,) bool.
    """

    def __init__(self, words):
        self.words = sorted(set(words))
        self.concepts = sorted({concept_of(word) for word in self.words})
        self.index = {concept: i for i, concept in enumerate(self.concepts)}
        self.concept_of_word = torch.tensor([self.index[concept_of(word)] for word in self.words])
        self.is_stuff = torch.tensor([concept in STUFF for concept in self.concepts])
        self.color_a, self.color_b, self.texture = _spread_looks(len(self.concepts))
        self.shape = torch.arange(len(self.concepts)) % len(SHAPES)

    def draw(self, slots, concept_of_slot, generator, period=(4.0, 6.0), noise=0.02):
        """Paint slot maps: float images in 0..1, (B, 3, height, width).

        Args:
            slots (long, (B, height, width)): slot of each pixel.
            concept_of_slot (long, (B, S)): concept of each slot.
            period (float, float): range of the texture's period in native pixels, drawn per slot.
            noise (float): standard deviation of the pixel noise, on 0..1.
        """
        batch, height, width = slots.shape
        shape = concept_of_slot.shape
        uniform = lambda low, high: torch.rand(shape, generator=generator) * (high - low) + low  # noqa: E731
        texture = self.texture[concept_of_slot]
        per_slot = torch.stack(
            [
                _FAMILY[texture].float(),
                _ANGLE[texture].cos(),
                _ANGLE[texture].sin(),
                1 / uniform(*period),
                uniform(0, 1),
                uniform(0, 1),
                uniform(0.9, 1.1),
            ],
            -1,
        )
        colors = torch.cat([self.color_a[concept_of_slot], self.color_b[concept_of_slot]], -1)
        rows = slots.flatten(1)[..., None]
        pixel = per_slot.gather(1, rows.expand(-1, -1, per_slot.shape[-1])).unflatten(1, (height, width))
        color = colors.gather(1, rows.expand(-1, -1, 6)).unflatten(1, (height, width))
        family, cos, sin, frequency, shift_u, shift_v, light = pixel.unbind(-1)
        y, x = torch.arange(height)[:, None], torch.arange(width)[None]
        u = torch.cos(2 * math.pi * ((x * cos + y * sin) * frequency + shift_u))
        v = torch.cos(2 * math.pi * ((y * cos - x * sin) * frequency + shift_v))
        field = torch.where(
            family == 0,
            u - 0.2,
            torch.where(
                family == 1, 1.5 * u * v - 0.1, torch.where(family == 2, u + v - 0.5, torch.maximum(u, v) - 0.5)
            ),
        )
        share = torch.sigmoid(5 * field)[..., None]  # share of the second colour
        image = (color[..., :3] * (1 - share) + color[..., 3:] * share) * light[..., None]
        image += noise * torch.randn(image.shape, generator=generator)
        return image.clamp(0, 1).permute(0, 3, 1, 2)

    def layout(self, stuff, things, size, generator, radius=(0.16, 0.3), cells=None):
        """Lay scenes out: slot of each pixel, (B, height, width).

        Stuff slots divide the image between them (each pixel goes to the nearest of random seeds); things are shapes on
        a jittered lattice, one over the other in slot order.

        Args:
            stuff (long, (B, S1)), things (long, (B, S2)): concepts; a thing of -1 is left out.
            size (int, int): height and width.
            radius (float, float): range of a thing's half height and half width, as a share of the shorter side.
            cells (int, int): rows and columns of the lattice; by default just enough for S2 things.
        """
        (batch, n_stuff), n_things, (height, width) = stuff.shape, things.shape[1], size
        rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        y, x = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
        seeds = rand(batch, n_stuff, 2) * torch.tensor([height, width])
        stretch = 1 + 2 * rand(batch, 2)  # regions are bands along either side, or blobs
        distance = ((y - seeds[..., 0, None, None]) * stretch[:, 0, None, None, None]) ** 2 + (
            (x - seeds[..., 1, None, None]) * stretch[:, 1, None, None, None]
        ) ** 2
        slots = distance.argmin(1)
        if n_things == 0:
            return slots
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

    def random_scenes(self, batch, size, generator, stuff=(1, 3), things=(1, 4)):
        """Return training scenes: images (B, 3, height, width) in 0..1, and what they show, (B, C) shares of pixels.

        Every scene of a batch has the same number of slots; a thing is left out at random, so that scenes differ.
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


def _spread_looks(count):
    """Choose `count` looks far from one another: greedy farthest points among all looks with enough contrast."""
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
    rows = max(1, round(math.sqrt(count * aspect)))
    return rows, math.ceil(count / rows)


def _inside(shape, u, v):
    """Whether the point (u, v), in units of the half width and half height, lies inside the shape of that index."""
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
