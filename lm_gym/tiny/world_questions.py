"""Questions about a small world of facts, or about the sentence before them, and answers good and bad.

Every question carries its answer key: groups of words, one of each in a complete answer, and the rivals that would be
wrong in their place. Labels: complete, partial (one part of several), wrong, empty, rambling, off_topic.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lm_gym.tiny.document import Document, article, capital

# plural, singular, what they eat (words, key), where they live (words, key), legs, what they can do
ANIMALS = (
    ("cows", "cow", "grass", "on a farm", "farm", "four"), ("rabbits", "rabbit", "carrots", "in a burrow", "burrow", "four"),
    ("bears", "bear", "honey and berries", "in a cave", "cave", "four"), ("monkeys", "monkey", "bananas", "in the jungle", "jungle", "two"),
    ("squirrels", "squirrel", "nuts", "in a hollow tree", "tree", "four"), ("lions", "lion", "meat", "on the dry plains", "plains", "four"),
    ("pandas", "panda", "bamboo", "in the mountains", "mountains", "four"), ("horses", "horse", "hay", "in a stable", "stable", "four"),
    ("sparrows", "sparrow", "seeds", "in a nest", "nest", "two"), ("frogs", "frog", "flies", "in a pond", "pond", "four"),
    ("penguins", "penguin", "fish", "on the ice", "ice", "two"), ("spiders", "spider", "insects", "in a web", "web", "eight"),
    ("bees", "bee", "nectar", "in a hive", "hive", "six"), ("chickens", "chicken", "corn", "in a coop", "coop", "two"),
    ("dogs", "dog", "bones", "in a kennel", "kennel", "four"), ("camels", "camel", "dry leaves", "in the desert", "desert", "four"),
    ("beetles", "beetle", "dead wood", "under the bark", "bark", "six"), ("goats", "goat", "bushes", "on rocky hills", "hills", "four"),
    ("owls", "owl", "mice", "in an old barn", "barn", "two"), ("foxes", "fox", "hens", "in a den", "den", "four"),
)  # fmt: skip
# country, capital, language, neighbour, drink that people like there
COUNTRIES = (
    ("France", "Paris", "French", "wine"), ("Italy", "Rome", "Italian", "espresso"), ("Spain", "Madrid", "Spanish", "sherry"),
    ("Germany", "Berlin", "German", "beer"), ("Japan", "Tokyo", "Japanese", "green tea"), ("Greece", "Athens", "Greek", "ouzo"),
    ("Norway", "Oslo", "Norwegian", "coffee"), ("Russia", "Moscow", "Russian", "kvass"), ("Poland", "Warsaw", "Polish", "kompot"),
    ("Portugal", "Lisbon", "Portuguese", "port"), ("England", "London", "English", "black tea"), ("Turkey", "Ankara", "Turkish", "ayran"),
    ("Egypt", "Cairo", "Arabic", "mint tea"), ("China", "Beijing", "Chinese", "jasmine tea"), ("Finland", "Helsinki", "Finnish", "milk"),
    ("Hungary", "Budapest", "Hungarian", "lemonade"),
)  # fmt: skip
# worker, what the worker does (they-form), key, where, key
WORKERS = (
    ("baker", "bake bread", "bread", "in a bakery", "bakery"), ("doctor", "treat sick people", "sick", "in a hospital", "hospital"),
    ("teacher", "teach children", "children", "in a school", "school"), ("farmer", "grow wheat", "wheat", "in the fields", "fields"),
    ("pilot", "fly planes", "planes", "in a cockpit", "cockpit"), ("sailor", "steer ships", "ships", "on the sea", "sea"),
    ("cook", "prepare meals", "meals", "in a kitchen", "kitchen"), ("tailor", "sew clothes", "clothes", "in a workshop", "workshop"),
    ("judge", "decide cases", "cases", "in a court", "court"), ("gardener", "plant flowers", "flowers", "in a garden", "garden"),
    ("miner", "dig for coal", "coal", "under the ground", "ground"), ("actor", "play roles", "roles", "on a stage", "stage"),
    ("librarian", "lend books", "books", "in a library", "library"), ("mechanic", "repair cars", "cars", "in a garage", "garage"),
    ("waiter", "serve guests", "guests", "in a restaurant", "restaurant"), ("painter", "paint pictures", "pictures", "in a studio", "studio"),
)  # fmt: skip
# thing, colour, material, use (to-form), key of the use
THINGS = (
    ("banana", "yellow", "", "make a milkshake", "milkshake"), ("lemon", "yellow", "", "make lemonade", "lemonade"),
    ("carrot", "orange", "", "make soup", "soup"), ("tomato", "red", "", "make a salad", "salad"),
    ("fire engine", "red", "steel", "put out fires", "fires"), ("snowman", "white", "snow", "have fun in winter", "winter"),
    ("tyre", "black", "rubber", "drive on the road", "road"), ("candle", "white", "wax", "light a room", "light"),
    ("brick", "red", "clay", "build walls", "walls"), ("window pane", "", "glass", "let the sun in", "sun"),
    ("hammer", "", "iron", "hit nails", "nails"), ("knife", "", "steel", "cut bread", "cut"),
    ("scarf", "", "wool", "keep warm", "warm"), ("chair", "", "wood", "sit down", "sit"),
    ("newspaper", "", "paper", "read the news", "news"), ("boot", "brown", "leather", "walk in the mud", "walk"),
    ("shirt", "", "cotton", "wear at work", "wear"), ("ring", "golden", "gold", "show your love", "love"),
    ("ladder", "", "wood", "climb a roof", "climb"), ("kettle", "", "copper", "boil water", "boil"),
)  # fmt: skip
# what to do, three steps, the key of each
HOW_TO = (
    ("make tea", "boil some water, pour it over the leaves and wait for three minutes", "boil", "leaves", "wait"),
    ("boil an egg", "heat a pot of water, put the egg in and take it out after six minutes", "water", "egg", "minutes"),
    ("plant a tree", "dig a hole, put the roots in and water them well", "dig", "roots", "water"),
    ("wash a car", "take a bucket of soap, scrub the dirt off and rinse it", "soap", "scrub", "rinse"),
    ("clean a window", "spray it, wipe it with a cloth and dry the edges", "spray", "wipe", "dry"),
    ("make a sandwich", "slice the bread, butter it and add some cheese", "slice", "butter", "cheese"),
    ("fix a flat tyre", "find the hole, glue a patch on it and pump it up", "hole", "patch", "pump"),
    ("bake a cake", "mix flour with eggs, fill the dough in a tin and put it in the oven", "flour", "dough", "oven"),
    ("write a letter", "take a sheet of paper, greet your friend and sign your name", "paper", "greet", "sign"),
    ("paint a wall", "cover the floor, stir the paint and use a wide brush", "cover", "stir", "brush"),
    ("cook rice", "rinse the grains, add twice as much water and let it simmer", "rinse", "water", "simmer"),
    ("build a fire", "collect dry wood, put small twigs below and strike a match", "wood", "twigs", "match"),
    ("catch a fish", "put a worm on the hook, throw the line and stay quiet", "worm", "line", "quiet"),
    ("wrap a gift", "cut the paper, fold the corners and tie a ribbon", "cut", "fold", "ribbon"),
    ("fly a kite", "wait for wind, run across a field and let the string out", "wind", "run", "string"),
    ("iron a shirt", "heat the iron, start with the collar and hang it up", "heat", "collar", "hang"),
    ("grow tomatoes", "sow the seeds, keep them in the sun and water them daily", "seeds", "sun", "water"),
    ("wash the dishes", "fill the sink, use a sponge and let them dry on a rack", "sink", "sponge", "rack"),
)  # fmt: skip
LISTS = {
    "fruits": ("apples", "pears", "plums", "cherries", "grapes", "oranges"),
    "colours": ("red", "blue", "green", "yellow", "pink", "grey"),
    "drinks": ("milk", "tea", "juice", "coffee", "water", "cocoa"),
    "tools": ("a saw", "a hammer", "a spade", "an axe", "a drill", "a rake"),
    "vehicles": ("a bus", "a train", "a tram", "a lorry", "a ship", "a plane"),
    "instruments": ("a piano", "a violin", "a flute", "a drum", "a guitar", "a harp"),
    "vegetables": ("beans", "peas", "onions", "cabbages", "potatoes", "leeks"),
    "sports": ("tennis", "football", "rowing", "chess", "swimming", "skating"),
}  # fmt: skip
NAMES = ("Anna", "Tom", "Lucy", "Ben", "Nora", "Paul", "Eva", "Max", "Clara", "Jack", "Rosa", "Leo", "Mia", "Sam")
OBJECTS = ("hat", "ball", "bike", "bag", "kite", "cup", "coat", "boat", "pen", "car", "lamp", "book")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "pink", "purple")
PLACES = ("market", "beach", "library", "station", "park", "theatre", "bank", "harbour", "church", "school", "zoo")
CITIES = tuple(country[1] for country in COUNTRIES)
EMPTY = (
    "I do not know.", "That is a good question.", "It depends.", "Let me think about it.", "Hm.", "Who knows?",
    "I am not sure.", "Why do you ask?", "Good question, next one please.", "I have no idea.", "Maybe.",
    "Somebody else may know.", "You could look it up.",
)  # fmt: skip
DRIFT = (
    "my uncle used to talk about {x} for hours", "there was a man on the radio last week", "that reminds me of my old school",
    "I once had a dream about {x}", "people say a lot of things about {x}", "my sister has a picture of that on her wall",
    "we had a long talk about it at dinner", "the weather was very bad that day", "I still have to go shopping today",
    "I lost my keys on the way home", "you never know with {x}", "it all started many years ago",
)  # fmt: skip
LABELS = ("complete", "partial", "wrong", "empty", "rambling", "off_topic")


@dataclass(frozen=True)
class Part:
    """One thing that is asked: the question in words, the answering sentence with {} for the answer, and the key."""

    question: str
    sentence: str
    words: str  # what fills the sentence
    key: str  # the word of it that counts
    rivals: tuple[tuple[str, str], ...]  # (words, key) of the same sort


@dataclass(frozen=True)
class Question:
    """What is asked, in parts; `before` is the sentence that it is about, if it is not about the world."""

    topic: str
    subject: tuple[str, ...]
    parts: tuple[Part, ...]
    before: str = ""
    steps: str = ""
    about: str = ""  # what a rambler talks about; the topic if empty


def _others(rows: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((words, other) for words, other in dict.fromkeys(rows) if other != key and key not in words)


def _last(words: str) -> str:
    return words.split()[-1]


def _animal(rng: random.Random) -> Question:
    many, one, food, home, home_key, legs = rng.choice(ANIMALS)
    foods = tuple((row[2], _last(row[2])) for row in ANIMALS)
    homes = tuple((row[3], row[4]) for row in ANIMALS)
    counts = tuple((n, n) for n in ("two", "four", "six", "eight"))
    eat = Part(f"what do {many} eat", f"{many} eat {{}}", food, _last(food), _others(foods, _last(food)))
    live = Part(f"where do {many} live", f"{many} live {{}}", home, home_key, _others(homes, home_key))
    leg = Part(f"how many legs do {many} have", f"{many} have {{}} legs", legs, legs, _others(counts, legs))
    parts = rng.sample((eat, live, leg), rng.choice((1, 2, 2)))
    return Question(many, (many, one), tuple(parts))


def _country(rng: random.Random) -> Question:
    land, city, language, drink = rng.choice(COUNTRIES)
    cities, languages, drinks = (tuple((row[i], _last(row[i])) for row in COUNTRIES) for i in (1, 2, 3))
    capital_ = Part(
        f"what is the capital of {land}", f"the capital of {land} is {{}}", city, city, _others(cities, city)
    )
    speak = Part(f"which language do people speak in {land}", f"people in {land} speak {{}}", language, language,
                 _others(languages, language))  # fmt: skip
    like = Part(f"what do people in {land} like to drink", f"people in {land} like to drink {{}}", drink, _last(drink),
                _others(drinks, _last(drink)))  # fmt: skip
    return Question(land, (land,), tuple(rng.sample((capital_, speak, like), rng.choice((1, 2, 2)))))


def _worker(rng: random.Random) -> Question:
    who, does, key, place, place_key = rng.choice(WORKERS)
    jobs, places = tuple((row[1], row[2]) for row in WORKERS), tuple((row[3], row[4]) for row in WORKERS)
    some = article(who)
    job = Part(f"what does {some} do", f"{who}s {{}}", does, key, _others(jobs, key))
    where = Part(f"where does {some} work", f"{who}s work {{}}", place, place_key, _others(places, place_key))
    return Question(who, (who, who + "s"), tuple(rng.sample((job, where), rng.choice((1, 2)))), about=some)


def _thing(rng: random.Random) -> Question:
    what, colour, material, use, use_key = rng.choice(THINGS)
    some = article(what)
    colours = tuple((row[1], row[1]) for row in THINGS if row[1])
    materials = tuple((row[2], row[2]) for row in THINGS if row[2])
    uses = tuple((row[3], row[4]) for row in THINGS)
    parts = [Part(f"what can you use {some} for", f"you can use {some} to {{}}", use, use_key, _others(uses, use_key))]
    if colour:
        parts.append(Part(f"what colour is {some}", f"{some} is {{}}", colour, colour, _others(colours, colour)))
    if material:
        parts.append(Part(f"what is {some} made of", f"{some} is made of {{}}", material, material,
                          _others(materials, material)))  # fmt: skip
    return Question(what, (what,), tuple(rng.sample(parts, rng.choice((1, 2)))), about=some)


def _how_to(rng: random.Random) -> Question:
    task, steps, *keys = rng.choice(HOW_TO)
    ask = rng.choice(
        (f"how do I {task}", f"how can I {task}", f"what is the best way to {task}", f"how does one {task}")
    )
    parts = tuple(Part(ask, "", key, key, ()) for key in keys)
    return Question(task, (_last(task),), parts, steps=steps, about="such work")


def _list(rng: random.Random) -> Question:
    kind = rng.choice(tuple(LISTS))
    first, second = rng.sample(LISTS[kind], 2)
    others = tuple((w, _last(w)) for name in LISTS if name != kind for w in LISTS[name])
    ask = rng.choice(
        (f"can you name two {kind}", f"which two {kind} come to your mind", f"what are two {kind} that you know")
    )
    parts = (Part(ask, "{}", first, "", others), Part(ask, "{}", second, "", others))
    return Question(kind, (kind, kind[:-1]), parts)


def _story(rng: random.Random) -> Question:
    """A question about the sentence before it, which only memory of that sentence can answer."""
    a, b = rng.sample(NAMES, 2)
    who = rng.choice((a, b))
    form = rng.randrange(4)
    if form == 0:
        thing, (one, two) = rng.choice(OBJECTS), rng.sample(COLOURS, 2)
        before = f"{a} has a {one} {thing} and {b} has a {two} one."
        right = one if who == a else two
        pairs = _others(((one, one), (two, two)), right)
        part = Part(f"what colour is the {thing} of {who}", f"the {thing} of {who} is {{}}", right, right, pairs)
    elif form == 1:
        one, two = rng.sample(PLACES, 2)
        before = f"{a} went to the {one} and {b} went to the {two}."
        right = one if who == a else two
        pairs = tuple((f"to the {x}", x) for x in (one, two) if x != right)
        part = Part(f"where did {who} go", f"{who} went {{}}", f"to the {right}", right, pairs)
    elif form == 2:
        one, two = rng.sample(CITIES, 2)
        before = f"{a} lives in {one} and {b} lives in {two}."
        city = rng.choice((one, two))
        right = a if city == one else b
        part = Part(
            f"who lives in {city}", f"{{}} lives in {city}", right, right, tuple((n, n) for n in (a, b) if n != right)
        )
    else:
        more = rng.choice(("taller", "older", "faster", "stronger", "younger", "richer"))
        before = f"{a} is {more} than {b}."
        part = Part(f"who is {more}", f"{{}} is {more}", a, a, ((b, b),))
    return Question(f"{a} and {b}", (a, b), (part,), before=before)


MAKERS = (_animal, _country, _worker, _thing, _how_to, _list, _story)
WEIGHTS = (22, 14, 12, 14, 12, 8, 18)


def _ask(rng: random.Random, question: Question) -> str:
    """The prompt of a question."""
    asked = list(dict.fromkeys(part.question for part in question.parts))
    words = " and ".join(asked)
    form = rng.randrange(6)
    before = question.before + " " if question.before else ""
    if form < 3 or (form != 4 and (before or len(asked) > 1)):
        return f"Question: {before}{capital(words)}? Answer:"
    if form == 3:
        return f"Question: {before}Please tell me, {words}? Answer:"
    if form == 4:
        who = rng.choice(NAMES) if not before else "Somebody"
        return f"{before}{who} asks: {words}? Answer:"
    return f"{before}Here is a question for you: {words}? Answer:"


def _fill(part: Part, words: str) -> str:
    """The answering sentence, without a full stop."""
    return part.sentence.replace("{}", words)


def _complete(rng: random.Random, question: Question) -> str:
    parts = question.parts
    if question.steps:
        return rng.choice(("First you {}.", "You {}.", "It is easy: {}.", "You should {}.")).format(question.steps)
    if not parts[0].key:
        words = f"{parts[0].words} and {parts[1].words}"
        return rng.choice((f"Two {question.topic} are {words}.", f"{capital(words)}.", f"I can think of {words}."))
    if len(parts) == 1 and rng.random() < 0.3:
        return capital(parts[0].words) + "."
    said = [_fill(part, part.words) for part in parts]
    # "Cows eat grass and they live on a farm", where both sentences begin with what is asked about.
    many = next((name for name in question.subject if name.endswith("s") and all(x.startswith(name) for x in said)), "")
    if many and len(said) == 2 and rng.random() < 0.6:
        said[1] = "they" + said[1][len(many) :]
    elif question.about and len(said) == 2 and all(x.startswith(question.about) for x in said):
        said[1] = "it" + said[1][len(question.about) :]
    text = " and ".join(said)
    ending = rng.choice((".", ".", ".", ", as far as I know.", ", and that is all.", ", of course."))
    return capital(text) + ending


def _partial(rng: random.Random, question: Question) -> str:
    if question.steps:
        keep = question.steps.split(" and ")[0].split(", ")[: rng.choice((1, 1, 2))]
        return rng.choice(("First you {}.", "You {}, and then I forgot.", "You could {}.")).format(" and ".join(keep))
    part = rng.choice(question.parts)
    if not part.key:
        return rng.choice((f"{capital(part.words)}.", f"I only know {part.words}."))
    return capital(_fill(part, part.words)) + rng.choice((".", ", but I do not know the rest.", "."))


def _wrong(rng: random.Random, question: Question) -> str:
    said = [_fill(part, rng.choice(part.rivals)[0]) for part in question.parts[:1]]
    return capital(" and ".join(said)) + rng.choice((".", ".", ", I think.", ", of course."))


def _rambling(rng: random.Random, question: Question) -> str:
    drifts = [d.format(x=question.about or question.topic) for d in rng.sample(DRIFT, rng.choice((2, 3, 3)))]
    start = rng.choice(("Well", "Oh", "Let me see", "Now"))
    text = f"{start}, " + rng.choice((" and ", ", and ")).join(drifts)
    if rng.random() < 0.25 and question.parts[0].sentence not in ("", "{}"):
        text += f", and {_fill(question.parts[0], question.parts[0].words)}"
    return text + rng.choice((".", ", and so on.", ", if you see what I mean."))


def question(rng: random.Random) -> Document:
    """One question and one answer, labelled with how good the answer is."""
    asked = rng.choices(MAKERS, WEIGHTS)[0](rng)
    many = len(asked.parts) > 1
    label = rng.choices(LABELS, (0.42, 0.14 if many else 0, 0 if asked.steps else 0.1, 0.11, 0.12, 0.11))[0]
    prompt = _ask(rng, asked)
    if label == "off_topic":
        other = asked
        while other.topic == asked.topic or other.before:
            other = rng.choices(MAKERS, WEIGHTS)[0](rng)
        completion = _complete(rng, other)
    elif label == "empty":
        completion = rng.choice(EMPTY)
    else:
        completion = {"complete": _complete, "partial": _partial, "wrong": _wrong, "rambling": _rambling}[label](
            rng, asked
        )
    answer: tuple[tuple[str, ...], ...]
    if asked.parts[0].key:
        answer = tuple((part.key.lower(),) for part in asked.parts)
    else:
        answer = (tuple(_last(w) for w in LISTS[asked.topic]),) * 2
    rivals = tuple(dict.fromkeys(key.lower() for part in asked.parts for _, key in part.rivals))
    return Document("questions", label, prompt, " " + completion, asked.topic, asked.subject, answer, rivals)
