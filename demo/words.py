"""The words of the demo's invented world, and names put together from syllables.

More than half of all names are made up, so that a model has to copy them from the context.
"""

# ruff: noqa: SIM905 - a sentence of words reads better than a list of quoted ones
import string
from random import Random

FIRST_NAMES = (
    "Ada Adil Aiko Alma Amir Anna Anton Aria Asha Bela Ben Bruno Cara Carl Chloe Dana David Dina "
    "Ella Elif Emil Emma Eric Eva Farid Felix Finn Frida Greta Hana Hugo Ida Igor Ines Iris Ivan "
    "Jana Jonas Juan Julia Kai Karim Katya Kofi Lara Lars Layla Lea Leo Lina Luca Lucy Luis Maja "
    "Marco Maria Max Maya Mia Mila Mina Mira Mona Nadia Naomi Nils Nina Noah Nora Olga Oliver Omar "
    "Oscar Paula Pedro Peter Petra Priya Rania Ravi Remi Rita Rosa Ruth Sam Sara Sofia Stella Sven "
    "Tara Theo Tina Tom Uma Vera Victor Wanda Yara Yusuf Zoe"
).split()
TOWNS = (
    "Accra Amman Athens Baku Bergen Berlin Bern Bogota Bonn Boston Brno Cairo Cork Dakar Delhi "
    "Dover Dublin Essen Geneva Genoa Ghent Graz Hanoi Havana Jaipur Kiel Kyoto Lagos Lahore Leeds "
    "Lima Linz Lisbon London Lyon Madrid Malaga Manila Milan Minsk Mumbai Nairobi Naples Nice "
    "Osaka Oslo Paris Perth Porto Prague Quito Riga Rome Rouen Seoul Sofia Split Sydney Tampa "
    "Tokyo Toledo Tunis Turin Turku Vienna Warsaw York Zagreb Zurich"
).split()
THINGS = (
    "bag basket bed bell belt bench bike blanket boat book bottle bowl box brush bucket camera "
    "candle cap car carpet chair clock coat comb couch cup curtain desk dish doll door dress drill "
    "drum fan flute fork frame glass glove guitar hammer hat heater helmet horn jacket jar jug "
    "kettle key kite knife ladder lamp lantern lock map mat mirror mug necklace needle notebook "
    "oven paddle pan pen pencil phone piano pillow pipe plate pot printer purse radio rake ring "
    "robe rope rug sack saw scarf shelf shirt shoe shovel skirt sofa spoon stool stove suitcase "
    "sweater sword table teapot tent ticket toaster towel toy train tray vase violin wagon wallet "
    "watch whistle window"
).split()
COLOURS = "red blue green yellow black white brown pink purple orange grey silver golden".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
JOBS = (
    "baker teacher doctor farmer pilot singer tailor painter sailor cook nurse driver writer "
    "gardener dancer judge plumber waiter miner fisher hunter barber builder guard"
).split()
ANIMALS = (
    "cat dog horse cow goat sheep bird fish mouse rabbit duck hen pig donkey parrot turtle frog "
    "snake fox bear wolf lion tiger camel"
).split()
FOODS = (
    "bread cheese soup rice cake honey butter milk tea coffee apples pears plums grapes nuts beans "
    "carrots onions potatoes tomatoes lemons figs dates olives pasta"
).split()
PLACES = (
    "under the table|on the shelf|in the garden|behind the door|next to the window|in the kitchen|"
    "near the river|at the market|in the school|on the roof|in the cellar|beside the bed|"
    "at the station|in the shop|by the sea|in the forest"
).split("|")
FAULTS = "broken|bent|torn|scratched|stained|cracked|too small|too big|not complete|late".split("|")
VEHICLES = "train bus boat car bike plane tram".split()
OPPOSITES = (
    "big small|old new|hot cold|wet dry|fast slow|loud quiet|heavy light|full empty|clean dirty|"
    "hard soft|long short|high low|good bad|happy sad|rich poor|strong weak|early late|open closed|"
    "near far|thick thin|wide narrow|young aged|dark bright|cheap dear|brave shy|busy free"
).split("|")
PAIRS = [tuple(pair.split()) for pair in OPPOSITES]
QUALITIES = [word for pair in PAIRS for word in pair]

ONSETS = "b br d dr f g gr h j k kl l m n p pr r s sk st t tr v w z sh th".split()
VOWELS = "a e i o u a e i o ai ei oo".split()
CODAS = ["", "", "", "", "n", "r", "l", "s", "m", "k", "t"]
LETTERS = string.ascii_letters + string.ascii_lowercase * 4 + string.digits + string.punctuation
TOWN_ENDINGS = "ville burg stad holm ton ford field port by mouth haven dorf".split()


def syllable(rng: Random) -> str:
    return rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)


def made_up_word(rng: Random) -> str:
    return "".join(syllable(rng) for _ in range(rng.choice((2, 2, 2, 3))))


def person(rng: Random) -> str:
    return rng.choice(FIRST_NAMES) if rng.random() < 0.4 else made_up_word(rng).capitalize()


def town(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return rng.choice(TOWNS)
    if draw < 0.7:
        return (syllable(rng) + rng.choice(TOWN_ENDINGS)).capitalize()
    return made_up_word(rng).capitalize()


def thing(rng: Random) -> str:
    return made_up_word(rng) if rng.random() < 0.12 else rng.choice(THINGS)


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def letters(rng: Random) -> str:
    """Arbitrary characters, so that every token of the vocabulary is trained."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.choice((1, 2, 3, 4, 6))))


def any_word(rng: Random) -> str:
    """A word of any sort, half of them made up: material for copying."""
    draw = rng.random()
    if draw < 0.55:
        return letters(rng) if draw < 0.12 else made_up_word(rng)
    return rng.choice(rng.choice((THINGS, COLOURS, ANIMALS, FOODS, QUALITIES, JOBS, TOWNS)))


def any_words(rng: Random, least: int, most: int) -> list[str]:
    return [any_word(rng) for _ in range(rng.randint(least, most))]
