"""Reviews: openings about a film, a meal, a hotel ..., and good, bad or mixed continuations.

The tables hold the words with what each is worth; the grammar below them writes the texts. Square brackets in a
table mark the words that carry the opinion: the generator drops the brackets, `gold.sentiment` reads the marked
words from the same tables, so that the two can never disagree about a word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lm_gym.tiny.document import Document, article, capital, plain

# What a word is worth, -1 to 1. STRONG words do not take "very", the others do.
STRONG = {
    +1: {
        "superb": 1.0, "excellent": 0.9, "wonderful": 0.9, "brilliant": 0.9, "amazing": 0.9, "fantastic": 0.9,
        "perfect": 1.0, "outstanding": 0.9, "marvellous": 0.9, "magnificent": 0.9, "splendid": 0.9, "great": 0.8,
    },
    -1: {
        "awful": -0.9, "terrible": -0.9, "horrible": -0.9, "dreadful": -0.9, "appalling": -0.9, "hopeless": -0.8,
        "atrocious": -1.0, "ridiculous": -0.7, "unbearable": -0.9, "disastrous": -0.9, "worthless": -0.9,
        "pathetic": -0.8,
    },
}  # fmt: skip
MILD = {
    +1: {
        "good": 0.6, "nice": 0.5, "pleasant": 0.5, "enjoyable": 0.6, "impressive": 0.7, "charming": 0.6,
        "lovely": 0.7, "satisfying": 0.6, "delightful": 0.8, "remarkable": 0.6,
    },
    -1: {
        "bad": -0.7, "poor": -0.6, "weak": -0.5, "disappointing": -0.6, "mediocre": -0.4, "boring": -0.6,
        "dull": -0.6, "annoying": -0.6, "unpleasant": -0.6, "irritating": -0.6,
    },
}  # fmt: skip
# Adjectives for one class of aspect each; all of them take "very".
BY_CLASS: dict[str, dict[int, dict[str, float]]] = {
    "story": {
        +1: {"gripping": 0.7, "moving": 0.6, "clever": 0.6, "touching": 0.6, "original": 0.6, "funny": 0.6},
        -1: {"predictable": -0.5, "confusing": -0.5, "silly": -0.5, "tedious": -0.6, "pointless": -0.7, "lame": -0.6},
    },
    "skill": {
        +1: {"convincing": 0.6, "graceful": 0.6, "natural": 0.5, "passionate": 0.6, "confident": 0.5},
        -1: {"wooden": -0.5, "clumsy": -0.5, "lifeless": -0.6, "careless": -0.6, "sloppy": -0.6},
    },
    "food": {
        +1: {"delicious": 0.8, "fresh": 0.5, "tasty": 0.6, "tempting": 0.5, "yummy": 0.6},
        -1: {"bland": -0.5, "greasy": -0.5, "stale": -0.6, "soggy": -0.5, "disgusting": -0.9, "tasteless": -0.6},
    },
    "person": {
        +1: {"friendly": 0.6, "polite": 0.5, "helpful": 0.6, "kind": 0.6, "patient": 0.4},
        -1: {"rude": -0.7, "unfriendly": -0.6, "lazy": -0.5, "arrogant": -0.6, "impatient": -0.5},
    },
    "place": {
        +1: {"clean": 0.5, "cosy": 0.5, "comfortable": 0.6, "elegant": 0.6, "welcoming": 0.6},
        -1: {"dirty": -0.6, "noisy": -0.5, "cramped": -0.5, "smelly": -0.6, "damp": -0.4, "uncomfortable": -0.6},
    },
    "device": {
        +1: {"reliable": 0.6, "fast": 0.4, "sturdy": 0.5, "handy": 0.5, "precise": 0.5},
        -1: {"useless": -0.8, "fragile": -0.4, "faulty": -0.6, "slow": -0.4, "unreliable": -0.6},
    },
    "sound": {
        +1: {"clear": 0.4, "rich": 0.5, "warm": 0.5, "beautiful": 0.8, "catchy": 0.5},
        -1: {"harsh": -0.5, "ugly": -0.7, "muddy": -0.4, "shrill": -0.5, "monotonous": -0.5},
    },
    "price": {
        +1: {"fair": 0.5, "reasonable": 0.5, "modest": 0.4},
        -1: {"unfair": -0.6, "outrageous": -0.8, "shocking": -0.7},
    },
}


@dataclass(frozen=True)
class Topic:
    """One thing that can be reviewed. Aspects are "name:class", plural where the name starts with "*"."""

    nouns: tuple[str, ...]
    did: str  # "I watched ..."
    again: str  # "I would ... again"
    trying: str  # "thinking of ..."
    fans: str  # "anyone who likes ..."
    aspects: tuple[str, ...]
    good: tuple[str, ...]  # clauses; the subject is part of them
    bad: tuple[str, ...]
    facts: tuple[str, ...]  # sentences without an opinion


TOPICS: dict[str, Topic] = {
    "film": Topic(
        ("film", "movie", "thriller", "comedy"), "watched", "watch it", "watching", "good stories",
        ("acting:skill", "plot:story", "music:sound", "ending:story", "dialogue:story", "*jokes:story",
         "*actors:skill", "main character:person", "first half:story"),
        ("we [laughed] from start to finish", "I [cried happy tears] at the end", "the whole cinema [clapped]",
         "nobody [wanted to leave their seat]", "I [forgot the time]"),
        ("half of the audience [left early]", "I [fell asleep] after an hour", "I nearly [walked out]",
         "somebody behind me [started to snore]", "I [kept looking at my watch]"),
        ("It lasts about two hours", "We sat in the last row", "It was shown in a small cinema", "The story takes place in the north"),
    ),
    "restaurant": Topic(
        ("restaurant", "bistro", "pizzeria", "diner"), "ate at", "eat there", "eating at", "good food",
        ("soup:food", "fish:food", "*desserts:food", "pasta:food", "waiter:person", "service:person",
         "dining room:place", "bread:food", "*prices:price", "*vegetables:food"),
        ("we [emptied every plate]", "I [asked for the recipe]", "the cook [gave us a free dessert]",
         "we [stayed until midnight]", "every table was [full of happy people]"),
        ("I [felt sick] afterwards", "we [waited for two hours]", "I [found a hair] on my plate",
         "half of the food [went back to the kitchen]", "the waiter [forgot our order]"),
        ("We had a table near the window", "It lies behind the station", "They open at six", "We ordered three courses"),
    ),
    "book": Topic(
        ("book", "novel", "story collection", "biography"), "read", "read it", "reading", "good writing",
        ("plot:story", "first chapter:story", "ending:story", "*characters:story", "writing:skill", "style:skill",
         "*dialogues:story", "hero:person", "cover:story"),
        ("I [could not put it down]", "I [read it twice] in a week", "I [smiled on every page]",
         "I [missed my bus stop] because of it", "I [bought a second copy] for a friend"),
        ("I [gave up] after three chapters", "I [skipped whole pages]", "I [threw it] into a corner",
         "I [forgot every name] in it", "I [sold it] the next day"),
        ("It has three hundred pages", "I read most of it on the train", "The story begins in a small village", "It was written in the nineties"),
    ),
    "hotel": Topic(
        ("hotel", "guest house", "hostel", "inn"), "stayed at", "stay there", "staying at", "quiet holidays",
        ("room:place", "breakfast:food", "bed:place", "staff:person", "bathroom:place", "*towels:place",
         "garden:place", "receptionist:person", "*prices:price"),
        ("I [slept like a baby]", "we [booked another night]", "they [upgraded our room]",
         "we [watched the sunset] from the balcony", "they [remembered our names]"),
        ("I [could not sleep] at all", "we [left a day early]", "there were [insects in the bath]",
         "they [lost our booking]", "the heating [broke] twice"),
        ("It lies close to the beach", "Our room was on the third floor", "We arrived late in the evening", "There are twenty rooms"),
    ),
    "phone": Topic(
        ("phone", "smartphone", "tablet", "laptop"), "bought", "buy it", "buying", "good technology",
        ("screen:device", "battery:device", "camera:device", "*buttons:device", "keyboard:device", "ring tone:sound",
         "*apps:device", "support team:person", "price:price"),
        ("it [works like a dream]", "I [use it all day]", "it [survived a fall] down the stairs",
         "my old one is [already in a drawer]", "it [saved me hours] of work"),
        ("it [stopped working] after a week", "it [crashes] every day", "I [sent it back]",
         "it [got very hot]", "the glass [cracked] on the first day"),
        ("I need it for work", "It came in a small box", "They sell it in three colours", "It comes with a charger"),
    ),
    "concert": Topic(
        ("concert", "show", "musical", "opera"), "went to", "go there", "going to", "live music",
        ("singer:skill", "band:skill", "sound:sound", "*songs:sound", "dancing:skill", "hall:place",
         "*seats:place", "orchestra:skill", "*tickets:price"),
        ("everybody [danced]", "the crowd [sang along]", "we [cheered for ten minutes]",
         "I [had goose bumps] all evening", "they [played three encores]"),
        ("people [booed] at the end", "my [ears hurt] for days", "the singer [forgot the words]",
         "we [left before the break]", "the microphone [failed] twice"),
        ("We sat near the stage", "It began at eight", "It lasted three hours with a break", "The band came from the south"),
    ),
    "game": Topic(
        ("game", "board game", "video game", "card game"), "played", "play it", "playing", "a good puzzle",
        ("story:story", "*rules:story", "*levels:story", "*puzzles:story", "music:sound", "box:device",
         "*controls:device", "idea:story", "manual:story"),
        ("we [played until sunrise]", "the children [begged for more]", "I [told all my friends] about it",
         "nobody [wanted to stop]", "we [laughed] the whole evening"),
        ("we [stopped after ten minutes]", "the children [lost interest]", "half of the pieces [were missing]",
         "it [froze] in the middle", "everybody [started to yawn]"),
        ("It takes about an hour", "You need at least two players", "We opened it after dinner", "It comes in a blue box"),
    ),
    "museum": Topic(
        ("museum", "gallery", "castle", "zoo"), "visited", "go there", "visiting", "old and rare things",
        ("guide:person", "*rooms:place", "cafe:place", "exhibition:story", "building:place", "audio tour:story",
         "shop:place", "*guards:person", "entrance fee:price"),
        ("we [learned so much]", "we [stayed the whole day]", "the children [asked a hundred questions]",
         "I [took two hundred pictures]", "we [bought a yearly pass]"),
        ("half of it [was closed]", "we [queued in the rain]", "we [were out again] in ten minutes",
         "the children [wanted to go home]", "a guard [shouted at us]"),
        ("It is open every day", "We arrived by bus", "It has four floors", "The tickets are sold at the gate"),
    ),
    "course": Topic(
        ("course", "class", "workshop", "seminar"), "took", "do it", "taking", "learning new things",
        ("teacher:person", "*lessons:story", "textbook:story", "*exercises:story", "room:place", "*slides:story",
         "last lecture:story", "feedback:person", "fee:price"),
        ("I [learned more] than in a whole year", "everybody [passed the test]", "we [asked for a second part]",
         "the hours [flew by]", "we [clapped] at the end"),
        ("I [learned nothing]", "half of us [dropped out]", "the teacher [came late] every day",
         "nobody [understood a word]", "I [counted the minutes]"),
        ("We met every Tuesday", "There were twelve of us", "It lasted six weeks", "The room was on the second floor"),
    ),
    "bakery": Topic(
        ("bakery", "coffee shop", "tea room", "ice cream shop"), "went to", "go there", "going to", "sweet things",
        ("coffee:food", "*cakes:food", "owner:person", "hot chocolate:food", "*chairs:place", "*pancakes:food",
         "counter:place", "apple pie:food", "*prices:price"),
        ("I [went back] the next morning", "we [ordered a second round]", "the owner [gave us a free biscuit]",
         "my plate was [empty in a minute]", "there was a [queue out of the door]"),
        ("I [left half of it]", "there was a [fly in my cup]", "they [charged me twice]",
         "nobody [came to serve us]", "I had a [stomach ache] all day"),
        ("It lies next to the church", "They open at seven", "We sat outside", "There are only five tables"),
    ),
}  # fmt: skip
# Who else was there: (name in the text, pronoun).
COMPANIONS = (
    ("my sister", "she"), ("my brother", "he"), ("my mother", "she"), ("my father", "he"), ("my aunt", "she"),
    ("my uncle", "he"), ("my wife", "she"), ("my husband", "he"), ("my friend Clara", "she"),
    ("my friend Daniel", "he"), ("my friend Nora", "she"), ("my friend Peter", "he"), ("my cousin Maria", "she"),
    ("my cousin Victor", "he"), ("my neighbour", "he"), ("my daughter", "she"), ("my son", "he"),
    ("my grandmother", "she"), ("my boss", "he"), ("my teacher", "she"),
)  # fmt: skip
TIMES = (
    "last night", "last week", "yesterday", "on Sunday", "on Friday", "in May", "in the summer", "on my birthday",
    "two days ago", "during the holidays", "last month", "on a rainy day", "this morning", "this spring",
)  # fmt: skip
COMPANION_SAYS = {
    +1: ("[loved] it too", "[agreed that it was worth the money]", "[was very happy] with it",
         "[has already told everyone] about it", "[wants to come back] soon", "[could not stop smiling]"),
    -1: ("[hated] it too", "[was just as angry]", "[complained] all the way home", "[was very unhappy] with it",
         "[is still annoyed] about it", "[could not stop complaining]"),
}  # fmt: skip
VERDICTS = {
    +1: ("I [would gladly] {again} again.", "I [can warmly recommend] it to anyone who likes {fans}.",
         "I [will certainly] {again} again.", "It was [worth every penny].", "[Five stars] from me.",
         "[Four stars] out of five.", "I was [not disappointed].", "I [enjoyed] every minute of it.", "I [love] it.",
         "It is the [best] {noun} that I know.", "[Do not miss] it.", "I am [so glad] that I tried it.",
         "[Thank you], we will be back."),
    -1: ("I [will never] {again} again.", "I [cannot recommend] it to anyone who likes {fans}.",
         "I [want my money back].", "It was a [waste of time].", "[One star] from me.", "[Two stars] out of five.",
         "I was [very disappointed].", "I [regret] every minute of it.", "I [hate] it.",
         "It is the [worst] {noun} that I know.", "[Stay away] from it.", "I [wish] that I [had stayed at home].",
         "[Save your money] for something else."),
}  # fmt: skip
WHOLE = {
    +1: ("[loved] it", "[enjoyed] it very much", "had a [wonderful] time", "had a lot of [fun]",
         "were [happy] with it", "[loved] every minute of it", "[liked it more] than expected"),
    -1: ("[hated] it", "did [not enjoy] it at all", "had a [terrible] time", "were [disappointed]",
         "were [bored] to death", "[regretted] it very soon", "[liked it much less] than expected"),
}  # fmt: skip
SO_THAT = {
    +1: ("I [told all my friends] about it", "we [stayed longer] than planned", "I [forgot the time]",
         "we [wanted more] of it", "I had to [smile]", "even my mother was [impressed]", "I was [truly surprised]"),
    -1: ("I [wanted to go home]", "we [wrote a complaint]", "I [could not believe it]", "it [spoiled my day]",
         "I had to [look away]", "even my mother was [shocked]", "we [argued about it] for days"),
}  # fmt: skip
PHRASE_VALUE = 0.7  # what a marked phrase is worth, with the sign of its table


def _pick(rng: random.Random, words: dict[str, float]) -> str:
    return rng.choice(tuple(words))


def _adjective(rng: random.Random, sign: int, cls: str) -> tuple[str, bool]:
    """An adjective of that sign for that class of aspect, and whether it is a strong one."""
    draw = rng.random()
    if draw < 0.45:
        return _pick(rng, BY_CLASS[cls][sign]), False
    if draw < 0.75:
        return _pick(rng, STRONG[sign]), True
    return _pick(rng, MILD[sign]), False


def _graded(rng: random.Random, sign: int, cls: str) -> str:
    word, strong = _adjective(rng, sign, cls)
    if strong:
        return rng.choice(("", "", "absolutely ", "really ", "simply ", "truly ")) + word
    return rng.choice(("", "", "very ", "really ", "quite ", "rather " if sign < 0 else "so ")) + word


def _two(rng: random.Random, sign: int, cls: str) -> tuple[str, str]:
    """Two different mild adjectives: one of the class, one that fits everything."""
    return _pick(rng, BY_CLASS[cls][sign]), _pick(rng, MILD[sign])


def opinion(rng: random.Random, sign: int, cls: str, topic: Topic, *, after_found: bool = False) -> str:
    """What follows "the acting was" (or "I found the acting"): a predicate of that sign, without a full stop."""
    draw = rng.random()
    if draw < 0.42:
        return _graded(rng, sign, cls)
    if draw < 0.56:
        return " and ".join(_two(rng, sign, cls))
    if draw < 0.68:
        return f"so {_pick(rng, BY_CLASS[cls][sign])} that {plain(rng.choice(SO_THAT[sign]))}"
    if draw < 0.76:
        word = _pick(rng, {**MILD[-sign], **BY_CLASS[cls][-sign]})
        return f"not {word} at all" if sign > 0 else rng.choice((f"not {word} at all", f"not very {word}"))
    if draw < 0.82:
        return "neither {} nor {}".format(*_two(rng, -sign, cls))
    if draw < 0.90:
        who = rng.choice(("I had hoped", "everybody says", "the advert says", "I remembered"))
        word = _pick(rng, {**MILD[+1], **BY_CLASS[cls][+1]})
        return f"just as {word} as {who}" if sign > 0 else f"not nearly as {word} as {who}"
    if draw < 0.96 or after_found:
        return ("much better" if sign > 0 else "much worse") + rng.choice(
            (" than I expected", " than all the others", " than the reviews say")
        )
    return f"the {'best' if sign > 0 else 'worst'} part of the {rng.choice(('evening', 'day', 'whole thing'))}"


def _aspect(rng: random.Random, topic: Topic, used: set[str]) -> tuple[str, bool, str]:
    """A fresh aspect of the topic: name, plural or not, class of adjectives."""
    name, cls = rng.choice([a for a in topic.aspects if a not in used]).split(":")
    used.add(f"{name}:{cls}")
    return name.lstrip("*"), name.startswith("*"), cls


def _be(plural: bool) -> str:
    return "were" if plural else "was"


def review(rng: random.Random) -> Document:
    """One review: a neutral opening as the prompt, a continuation labelled positive, negative or mixed."""
    name = rng.choice(tuple(TOPICS))
    topic = TOPICS[name]
    noun = rng.choice(topic.nouns)
    label = rng.choices(("positive", "negative", "mixed"), (0.42, 0.36, 0.22))[0]
    first = {"positive": +1, "negative": -1}.get(label) or rng.choice((+1, -1))
    last = -first if label == "mixed" else first
    companion, pronoun = rng.choice(COMPANIONS) if rng.random() < 0.6 else ("", "")
    used: set[str] = set()
    aspect, plural, cls = _aspect(rng, topic, used)
    be, time, did = _be(plural), rng.choice(TIMES), topic.did
    form = rng.randrange(9)
    if form == 0:
        together = f" with {companion}" if companion else ""
        prompt = f"{rng.choice(('I', 'We'))} {did} this {noun}{together} {time} and the {aspect} {be}"
    elif form == 1:
        who = capital(f"{companion} and I") if companion else rng.choice(("I", "We"))
        prompt = f"{who} {did} this {noun} {time}. The {aspect} {be}"
    elif form == 2:
        who = companion or "a friend"
        prompt = f"{capital(who)} told me about this {noun}, and I found the {aspect}"
    elif form == 3:
        prompt = f"{rng.choice(('A short', 'My', 'An honest'))} review of the {noun}: the {aspect} {be}"
        companion = ""
    elif form == 4:
        gift = bool(companion) and did in ("bought", "read", "played")
        was = f"This {noun} was a gift from {companion}" if gift else f"This was my first {noun} in a long time"
        prompt = f"{was}. I thought that the {aspect} {be}"
        companion = companion if gift else ""
    elif form == 5:
        prompt = f"If you are thinking of {topic.trying} this {noun}, you should know that the {aspect} {be}"
        companion = ""
    elif form == 6:
        who = companion or "my whole family"
        prompt = f"{time[0].upper()}{time[1:]} {who} and I {did} {article('new ' + noun)}, and we"
    elif form == 7:
        prompt = f"What can I say about this {noun}? The {aspect} {be}"
        companion = ""
    else:
        prompt = f"{capital(companion or 'our friends')} {did} this {noun} before me. For me the {aspect} {be}"
    if form == 6:
        used.clear()
        text = f"{plain(rng.choice(WHOLE[first]))}"
    else:
        text = opinion(rng, first, cls, topic, after_found=form == 2)
    text += _rest(rng, topic, noun, label, first, last, companion, pronoun, used, started=form == 6)
    return Document(kind="reviews", label=label, prompt=prompt, completion=" " + text, topic=name, subject=(noun,))


def _rest(
    rng: random.Random, topic: Topic, noun: str, label: str, first: int, last: int, companion: str, pronoun: str,
    used: set[str], *, started: bool,
) -> str:  # fmt: skip
    """The rest of a continuation after its first opinion: a turn where the label is mixed, then at most a closing."""
    parts = []
    if label == "mixed" or rng.random() < 0.3:
        aspect, plural, cls = _aspect(rng, topic, used)
        clause = f"the {aspect} {_be(plural)} {opinion(rng, last, cls, topic)}"
        if label != "mixed":
            parts.append(rng.choice((f", and {clause}.", f". Even {clause}.", f", because {clause}."))
                         if started else rng.choice((f", and {clause}.", f". {capital(clause)}.")))  # fmt: skip
        else:
            parts.append(rng.choice((f", but {clause}.", f". However, {clause}.", f", although {clause}.")))
    else:
        parts.append(".")
    if rng.random() < 0.16:
        parts.append(f" {rng.choice(topic.facts)}.")
    draw = rng.random()
    if draw < 0.3 and companion:
        short = companion.removeprefix("my friend ").removeprefix("my cousin ")
        who = rng.choice((pronoun, pronoun, short))
        parts.append(f" {capital(who)} {plain(rng.choice(COMPANION_SAYS[last]))}.")
    elif draw < 0.68:
        parts.append(" " + plain(rng.choice(VERDICTS[last])).format(again=topic.again, fans=topic.fans, noun=noun))
    elif draw < 0.80 and "so " not in "".join(parts):
        parts.append(f" {capital(plain(rng.choice(topic.good if last > 0 else topic.bad)))}.")
    return "".join(parts)
