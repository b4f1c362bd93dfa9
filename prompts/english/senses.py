"""What class words mean, and the contexts that suit animals, people and the kinds of things."""

from __future__ import annotations

from typing import Literal

from prompts.english.contexts import lines

Sense = Literal["animal", "person", "vehicle", "clothing", "vessel", "food", "plant", "bag", "thing"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words by what they mean; a class word that is in none is a thing.
SENSES: dict[Sense, frozenset[str]] = {
    "animal": _words(
        "animal dog puppy cat kitten bird horse pony cow bull calf sheep lamb goat pig piglet rabbit "
        "bunny hamster mouse rat squirrel fox wolf bear panda lion tiger leopard cheetah elephant "
        "giraffe zebra monkey gorilla chimpanzee koala kangaroo deer moose elk camel llama alpaca "
        "donkey otter beaver badger raccoon hedgehog sloth seal walrus penguin owl eagle hawk parrot "
        "swan duck goose chicken hen rooster turkey pigeon crow raven flamingo peacock turtle "
        "tortoise lizard gecko iguana snake crocodile alligator frog toad fish goldfish shark whale "
        "dolphin octopus crab lobster snail butterfly bee beetle spider ladybug dinosaur dragon "
        "unicorn corgi poodle terrier retriever beagle dachshund husky pug chihuahua spaniel shepherd "
        "labrador"
    ),
    "person": _words(
        "person people man men woman women boy girl child children baby toddler teenager adult lady "
        "gentleman friend mother father sister brother grandmother grandfather grandma grandpa uncle "
        "aunt king queen prince princess doctor nurse teacher student chef farmer soldier police "
        "policeman firefighter astronaut dancer singer actor actress athlete player artist painter "
        "worker bride groom musician guitarist pilot sailor wizard knight clown monk family couple "
        "face human guy"
    ),
    "vehicle": _words(
        "car truck bus van taxi motorcycle motorbike scooter bicycle bike tricycle train tram "
        "locomotive airplane plane helicopter boat ship sailboat canoe kayak yacht submarine tractor "
        "wagon jeep ambulance skateboard sled rocket spaceship"
    ),
    "clothing": _words(
        "shirt t-shirt blouse sweater jumper hoodie jacket coat vest dress skirt suit tie scarf hat "
        "cap beanie helmet belt watch ring necklace bracelet crown mask costume apron uniform boot "
        "shoe sneaker sandal slipper glove sock glasses sunglasses eyeglasses goggles trousers pants "
        "jeans shorts leggings boots shoes sneakers sandals slippers heels loafers socks gloves "
        "mittens earrings kimono robe"
    ),
    "vessel": _words(
        "mug cup glass bottle teapot kettle pitcher jug jar bowl vase pot thermos tankard goblet "
        "teacup flask bucket pan plate can"
    ),
    "food": _words(
        "food cake cupcake pizza burger hamburger sandwich bread donut doughnut cookie cookies pie "
        "croissant bagel muffin pancake pancakes sushi salad soup pasta noodles cheese chocolate "
        "candy apple banana orange pear strawberry strawberries grapes lemon pineapple watermelon "
        "peach cherry cherries tomato carrot potato egg eggs dumplings taco"
    ),
    "plant": _words(
        "plant tree flower flowers rose tulip sunflower orchid cactus bonsai fern bush bouquet "
        "mushroom succulent ivy palm daisy lily"
    ),
    "bag": _words("backpack bag handbag purse suitcase briefcase basket wallet rucksack luggage satchel box chest"),
}
#: Before an animal or a person they make it a thing: "stuffed animal", "teddy bear", "hot dog", "toy car".
THING_MAKERS = _words(
    "stuffed toy plush teddy rubber wooden ceramic porcelain plastic glass bronze stone marble lego "
    "origami balloon hot gummy chocolate model clay knitted crochet paper"
)

ACTIONS: dict[Sense, tuple[str, ...]] = {
    "animal": lines("""
        {x} leaping over a puddle
        {x} sleeping curled up
        {x} chasing a butterfly
        {x} shaking off water
        {x} digging a hole
        {x} yawning
        {x} running towards the camera
        {x} looking at its reflection
        {x} drinking from a bowl
        {x} hiding behind a curtain
        {x} rolling in the dirt
        {x} climbing over a fence
        {x} sniffing a shoe
        {x} carrying a stick
        {x} stretching after a nap
        {x} following a child
        {x} playing with a ball of wool
        {x} peeking out of a box
        {x} being groomed by its owner
        {x} begging for food
        {x} swimming against the current
        {x} guarding a door
        {x} staring at the sky
        a boy feeding {x}
        a vet examining {x}
        a woman carrying {x} in her arms
    """),
    "person": lines("""
        {x} reading a letter
        {x} riding a bicycle
        {x} dancing alone
        {x} pouring tea
        {x} laughing at a joke
        {x} climbing a ladder
        {x} playing the violin
        {x} tying a shoelace
        {x} waving goodbye
        {x} carrying a heavy box
        {x} asleep on a chair
        {x} cooking soup
        {x} painting a fence
        {x} running for a bus
        {x} juggling oranges
        {x} fishing with a net
        {x} talking on the phone
        {x} jumping over a rope
        {x} feeding pigeons
        {x} blowing out candles
        {x} building a snowman
        {x} holding an umbrella
        {x} repairing a clock
        {x} throwing a ball
    """),
    "thing": lines("""
        {x} falling off a shelf
        {x} floating on the water
        {x} hanging from a branch
        {x} balancing on a rope
        {x} half buried in sand
        {x} rolling down a slope
        {x} spinning in the air
        {x} sinking in a pond
        {x} wrapped in a ribbon
        {x} reflected in a mirror
        {x} seen through a keyhole
        {x} tied to a balloon
        {x} dropped on the floor
        {x} standing on a pedestal
        {x} drying in the sun
        {x} hidden under a blanket
        {x} drifting on a raft
        {x} swinging on a chain
        {x} displayed in a glass case
        {x} packed in straw
        a child reaching for {x}
        a man repairing {x}
        a woman holding {x}
        a street vendor selling {x}
        a dog sniffing {x}
        a photographer taking pictures of {x}
        a waiter carrying {x} on a tray
        an old man polishing {x}
        a crow stealing {x}
        two friends arguing over {x}
        a girl drawing {x} in her sketchbook
        a crane lifting {x}
    """),
}
QUALITIES: dict[Sense, tuple[str, ...]] = {
    "animal": (
        "tiny", "enormous", "muddy", "soaking wet", "fluffy", "old", "young", "chubby", "skinny", "spotted", "striped",
        "sleepy", "angry", "frightened", "playful", "freshly groomed", "albino", "scruffy",
    ),
    "person": (
        "tall", "tiny", "young", "elderly", "smiling", "angry", "tired", "soaking wet", "freckled", "sunburnt",
        "elegant", "muddy", "curly-haired", "bearded", "bald", "nervous", "proud", "sleepy",
    ),
    "thing": (
        "tiny", "enormous", "cracked", "rusty", "dusty", "brand-new", "transparent", "worn-out", "glossy", "fluffy",
        "striped", "polka-dotted", "checkered", "glowing", "melting", "antique", "bent", "freshly painted", "floral",
        "soaking wet",
    ),
}  # fmt: skip
ADDITIONS: dict[Sense, tuple[str, ...]] = {
    "animal": lines("""
        wearing a tiny raincoat
        wearing a woollen scarf
        wearing a flower crown
        wearing a superhero cape
        wearing reading glasses
        wearing a bow tie
        covered in snow
        covered in mud
        with paint on its paws
        with a leaf on its head
        with ruffled fur
        with glowing eyes
    """),
    "person": lines("""
        wearing a yellow raincoat
        wearing a knitted sweater
        wearing a space suit
        wearing a velvet cloak
        wearing round glasses
        wearing muddy boots
        with flour on both hands
        with paint on the face
        with braided hair
        with a bandaged arm
        with rolled-up sleeves
        with a flower behind the ear
    """),
    "thing": lines("""
        covered in frost
        covered in moss
        covered in stickers
        made of glass
        made of wool
        made of ice
        made of cardboard
        made of chocolate
        carved from wood
        decorated with seashells
        with gold trim
        with a crack down the middle
        with peeling paint
        with mirrored sides
        full of dents
        overgrown with ivy
        dripping with honey
        sprinkled with glitter
    """),
}
