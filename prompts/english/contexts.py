"""Contexts that suit every subject: places, times, details, neighbours, styles and moods."""

from __future__ import annotations


def lines(text: str) -> tuple[str, ...]:
    """The lines of a text, without their indentation."""
    return tuple(line.strip() for line in text.strip().splitlines())


FRAMES = lines("""
    a photo of {x}
    {x}
    a close-up of {x}
    a wide shot of {x}
    a blurry snapshot of {x}
    a candid photo of {x}
    a low-angle view of {x}
    an overhead view of {x}
""")
PLACES = lines("""
    on a wooden pier
    in a sunlit kitchen
    at the edge of a cliff
    in a bamboo forest
    on a rooftop terrace
    in an abandoned factory
    beside a mountain lake
    in a crowded market
    on a park bench
    in an empty swimming pool
    in a cozy library
    on a windowsill
    under a stone bridge
    in a field of lavender
    at a railway station
    in a greenhouse full of ferns
    on a sand dune
    in front of an old castle
    on a frozen river
    in a subway car
    inside a wooden barn
    next to a campfire
    in a Japanese garden
    in a neon-lit alley
    on a coral reef
    in a cobbled courtyard
    at a busy airport
    on a marble staircase
    by a swimming pool
    in a vineyard
    at the foot of a lighthouse
    in a laundromat
    among giant redwoods
    on a tropical island
    in a school classroom
    in a recording studio
    on a suspension bridge
    inside an ice cave
    beside a waterfall
    in a rice paddy
    on a hay bale
    in a hotel lobby
    at a street fair
    in an art museum
    on a picnic blanket
    inside a tent
    on the deck of a ship
    in a pumpkin patch
    at a bus stop
    in a rose garden
    on a kitchen counter
    in a basement workshop
    at a flea market
    in a snow-covered village
    on a volcano's slope
    in a theatre
    on a gravel path
    in a cornfield
    in front of a graffiti wall
    on a balcony above the city
    in a train compartment
    in a temple
    on a fishing boat
    in a supermarket aisle
    at the bottom of a canyon
    in a children's playroom
    in a football stadium
    on a leather armchair
    in a hospital corridor
    beneath a cherry tree
    on an unmade bed
    in a barber's shop
    in a salt desert
    in a muddy puddle
    at a petrol station
    in a glass elevator
    in a Moroccan riad
    on a conveyor belt
    in a backyard
    on the moon
""")
TIMES = lines("""
    at sunrise
    at dusk
    at midnight
    on a foggy morning
    during a thunderstorm
    in the first snow of winter
    in bright midday light
    on a rainy afternoon
    under a full moon
    in late autumn
    on a windy day
    by candlelight
    at golden hour
    in the blue light before dawn
    during a heat wave
    on a spring day
    in falling snow
    after the rain
    during a carnival
    on a moonless night
    in dappled shade
    under fluorescent lamps
    during a power cut
    on a clear winter night
""")
DETAILS = lines("""
    with hills in the distance
    with string lights overhead
    with fallen petals all around
    with a rainbow behind
    with steam rising nearby
    with seagulls overhead
    with long shadows
    with a crowd passing by
    with fireflies in the air
    with old newspapers scattered about
    with laundry hanging above
    with balloons drifting past
    with confetti in the air
    with skyscrapers on the horizon
    with waves crashing behind
    with dry leaves swirling around
    with smoke drifting through
    with windmills far away
    with hot-air balloons in the sky
    with a red curtain behind
    with tall reeds around
    with shelves full of books behind
    with a starry sky above
    with fireworks in the sky
    with snowy peaks behind
    with dust dancing in a sunbeam
""")
RELATIONS = lines("""
    next to
    behind
    in front of
    on top of
    under
    to the left of
    to the right of
    leaning against
    far away from
    facing
    opposite
""")
NEIGHBOURS = lines("""
    a copper kettle
    a sleeping cat
    a stack of books
    a red bicycle
    a bowl of oranges
    an old typewriter
    a wooden chair
    a grand piano
    a birdcage
    a garden gnome
    a globe
    a pile of pillows
    a yellow umbrella
    an acoustic guitar
    a lit candle
    a chess board
    a fire hydrant
    a glass of lemonade
    a watering can
    a snow globe
    a grandfather clock
    a suit of armour
    a skateboard
    a sewing machine
    a rocking horse
    a vintage radio
    a stone lion
    a pineapple
    a telescope
    a mailbox
    a wheelbarrow
    a bunch of balloons
    a bird feeder
    a birthday cake
    a robot
    a golden retriever
    a white horse
    a flock of pigeons
    a potted cactus
    a street musician
    a little girl
    an elderly couple
    a scarecrow
    a hammock
    a canoe
    a traffic cone
    a hat stand
    a tea set
    a film camera
    a disco ball
""")
STYLES = lines("""
    a watercolor painting of {x}
    an oil painting of {x}
    a charcoal drawing of {x}
    a pencil sketch of {x}
    a linocut print of {x}
    a bronze sculpture of {x}
    a stained-glass window showing {x}
    a pixel art sprite of {x}
    a comic book panel with {x}
    a low-poly render of {x}
    a claymation still of {x}
    an origami model of {x}
    an embroidered patch of {x}
    a cave painting of {x}
    a Renaissance fresco of {x}
    an art deco poster of {x}
    a cubist painting of {x}
    an impressionist painting of {x}
    a pop art print of {x}
    a ukiyo-e woodblock print of {x}
    a black-and-white film still of {x}
    a Polaroid of {x}
    a daguerreotype of {x}
    a cyberpunk illustration of {x}
    a children's book illustration of {x}
    a chalk drawing of {x}
    a mosaic of {x}
    a neon sign in the shape of {x}
    a tapestry depicting {x}
    a blueprint of {x}
    a marble statue of {x}
    an ink wash painting of {x}
    a graffiti mural of {x}
    a paper collage of {x}
    a vaporwave album cover with {x}
    an infrared photograph of {x}
    a double exposure of {x}
    a wood carving of {x}
    a sand sculpture of {x}
    a minimalist logo of {x}
""")
MOODS = lines("""
    in muted autumn colours
    in soft pastel tones
    in stark black and white
    with bold outlines
    with thick brush strokes
    in shades of blue
    with dramatic shadows
    with gold leaf
    in sepia tones
    with a dreamy glow
    in clashing bright colours
    with fine crosshatching
    with film grain
    in warm earth tones
    with rough torn edges
    with a gloomy atmosphere
    in an airy style
    with swirling lines
    with geometric patterns
    in silver and violet
""")
COLOURS = (
    "crimson", "turquoise", "mustard yellow", "emerald green", "navy blue", "lavender", "burnt orange", "jet black",
    "snow white", "pale pink", "silver", "copper", "teal", "maroon", "olive green", "beige", "golden", "scarlet",
    "sky blue", "charcoal grey",
)  # fmt: skip
