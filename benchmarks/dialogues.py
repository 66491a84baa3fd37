"""Long dialogues with facts planted in them, and questions whose answers are known.

A dialogue is about a dozen people. In some turns the user tells something about one of them, often
between other sentences; some of it is corrected later, and the correction is what counts. Questions
come at least `LEAST_DISTANCE` turns after, in other words than the fact. All else is chatter, much
of it about the same people and things, so that finding the fact takes more than its topic. Values
(names, dates, numbers, places) stand nowhere but in the facts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

TURNS, FACTS, CORRECTIONS = 200, 50, 6
LEAST_DISTANCE = 10
LAST_FACT = 160  # facts come before this turn

PEOPLE = (
    ("Anna", "my sister Anna"),
    ("Marek", "my neighbour Marek"),
    ("Ines", "my colleague Ines"),
    ("Tobias", "my cousin Tobias"),
    ("Leila", "my old friend Leila"),
    ("Pavel", "my brother Pavel"),
    ("Greta", "my aunt Greta"),
    ("Yusuf", "our landlord Yusuf"),
    ("Carla", "my boss Carla"),
    ("Henrik", "my flatmate Henrik"),
    ("Mina", "my niece Mina"),
    ("Otto", "my uncle Otto"),
)


class Attribute(NamedTuple):
    """What can be told of a person; `{who}` is the person, `{value}` what is asked for."""

    tells: Sequence[str]
    asks: Sequence[str]
    values: Sequence[str]


_DAYS = ("3rd March", "19th July", "27th May", "8th November", "14th January", "30th August")
_COMPANIES = (
    "Halden Shipping",
    "Brightwater Labs",
    "Kestrel Insurance",
    "Orchard and Vale",
    "Ferrum Bridges",
    "Lumen Press",
    "Tallow Street Bank",
)

ATTRIBUTES = (
    Attribute(
        ("{who} has a new dog, it is called {value}.", "The dog of {who} answers to {value}."),
        ("What is the name of {name}'s dog?", "How does {name} call the dog at home?"),
        ("Biscuit", "Pixel", "Mustard", "Captain", "Nutmeg", "Domino", "Waffles", "Juniper"),
    ),
    Attribute(
        ("{who} was born on {value}.", "The birthday of {who} is {value}, I must not forget it."),
        ("When is {name}'s birthday?", "On which date should I congratulate {name}?"),
        tuple("the {} of {}".format(*day.split()) for day in _DAYS),
    ),
    Attribute(
        ("{who} has started at {value} as an accountant.", "{who} works for {value} now."),
        ("Where does {name} work?", "Which company employs {name}?"),
        _COMPANIES,
    ),
    Attribute(
        ("{who} has moved to {value} last week.", "{who} lives in {value} these days."),
        ("In which city does {name} live?", "Where has {name} moved to?"),
        ("Trieste", "Bergen", "Valencia", "Ghent", "Tampere", "Salzburg", "Porto", "Gdansk"),
    ),
    Attribute(
        ("{who} must not eat {value}, it makes the face swell.", "{who} is allergic to {value}."),
        ("What is {name} allergic to?", "Which food must I not cook for {name}?"),
        ("hazelnuts", "shellfish", "celery", "sesame", "kiwi fruit", "buckwheat", "lupin"),
    ),
    Attribute(
        ("The door code of {who} is {value}.", "To get in at {who}'s place you type {value}."),
        ("What is the code for {name}'s door?", "Which digits open {name}'s house?"),
        ("4471", "9026", "3358", "7712", "6049", "2295", "8830", "5163", "1947"),
    ),
    Attribute(
        ("{who} drives a {value} now.", "{who} bought a second-hand {value}."),
        ("What car does {name} drive?", "Which car belongs to {name}?"),
        ("green Saab", "white Lancia", "grey Skoda", "red Dacia", "blue Volvo", "black Seat"),
    ),
    Attribute(
        ("{who} comes on flight {value}.", "The plane that {who} takes has the number {value}."),
        ("What is {name}'s flight number?", "Which flight does {name} take?"),
        ("TK1873", "LX402", "AY1331", "KL1960", "SK2591", "OS714", "TP1365"),
    ),
)

CHATTER = (
    "I saw {name} at the market today, we talked about nothing much.",
    "{name} sent me a long message again, mostly about work and the weather.",
    "Do you think I should invite {name} for dinner on the weekend?",
    "{name} was walking the dog in the park when the rain began.",
    "I am thinking about what to give {name} as a present.",
    "We had a long meeting today and nothing came of it.",
    "The tram was late again and I stood in the cold for twenty minutes.",
    "I am trying to sleep earlier, but I always end up reading until late.",
    "The kitchen tap drips again, though it was repaired in spring.",
    "I would like to learn to bake bread that is not hard as a stone.",
    "{name} asked me to help with the move, and I could not say no.",
    "My back hurts from sitting, so I took a walk along the river.",
    "{name} says that the new flat is bright but noisy.",
    "I read that the old cinema is going to be closed, what a pity.",
    "Somebody at work always takes my cup, and I have a suspicion who it is.",
    "I could not find my keys this morning and then they were in the door.",
    "{name} and I went to the swimming pool, it was far too crowded.",
    "The neighbours are having their roof done and it is very loud.",
    "I bought a bicycle lamp, but it does not fit on my bicycle.",
    "{name} drove me home in the new car, it smells of leather.",
    "It is strange how quickly this year has gone by.",
    "I planted tomatoes on the balcony, and the birds have eaten half of them.",
    "{name} does not like the food in the canteen and brings a lunch box.",
    "I have to fill in my tax forms and I keep putting it off.",
    "There was a good concert in the church, and it was free.",
    "{name} is looking forward to the flight and packs already.",
)

REPLIES = (
    "That sounds like a day with a bit of everything.",
    "I see, thank you for telling me.",
    "It may help to write things down before you decide.",
    "Small things like that can take up a lot of room in one's head.",
    "You could ask directly, most people are glad when somebody does.",
    "I would take it slowly and see how it feels in a week.",
    "A walk and a warm drink are rarely a mistake.",
    "That is understandable, and you are not the only one.",
    "Perhaps there is a simple reason for it that nobody has thought of.",
    "Let me know how it goes, I am curious.",
    "If it comes up again we can make a list of what to do.",
    "Good, that seems settled then, at least for now.",
    "There is no hurry, and it can wait until the weekend.",
    "It is often easier once the first step is done.",
    "I have noted it, and we can come back to it at any time.",
    "Many people find that such a thing solves itself with a little patience.",
    "You have every right to be annoyed about that.",
    "How nice, moments like that should come more often.",
)


class Turn(NamedTuple):
    """What the user says and the reply. `wanted` is the value that a question asks for."""

    user: str
    reply: str
    wanted: str | None = None


def dialogue(seed: int, turns: int = TURNS, facts: int = FACTS) -> list[Turn]:
    """A dialogue of so many turns in which so many facts are told and each is asked for once."""
    draw = random.Random(seed)
    last = LAST_FACT * turns // TURNS
    said: dict[int, str] = {}
    wanted: dict[int, tuple[str, str]] = {}
    free = list(range(turns))
    for (name, who), attribute, values in _drawn(draw, facts):
        tells = list(attribute.tells)
        told = [draw.choice([t for t in free if t < last and t not in wanted])]
        if len(values) > 1:
            told.append(draw.choice([t for t in free if told[0] < t < last + 10] or [last + 10]))
        for turn, value in zip(told, values, strict=True):
            tell = draw.choice(tells).format(who=who, value=value)
            tell = tell[0].upper() + tell[1:]
            said[turn] = f"Something has changed. {tell}" if turn != told[0] else tell
            free = [one for one in free if one != turn]
        later = [one for one in free if one >= told[-1] + LEAST_DISTANCE]
        asked = draw.choice(later or free[-1:])
        free = [one for one in free if one != asked]
        wanted[asked] = (draw.choice(attribute.asks).format(name=name), values[-1])
    return [_turn(draw, said.get(turn), wanted.get(turn)) for turn in range(turns)]


def _drawn(
    draw: random.Random, facts: int
) -> list[tuple[tuple[str, str], Attribute, tuple[str, ...]]]:
    """People, attributes and values, no value twice; the first few are corrected once."""
    pools = {index: draw.sample(a.values, len(a.values)) for index, a in enumerate(ATTRIBUTES)}
    pairs = [(person, index) for person in PEOPLE for index in pools]
    draw.shuffle(pairs)
    found = list[tuple[tuple[str, str], Attribute, tuple[str, ...]]]()
    for person, index in pairs:
        size = 2 if len(found) < CORRECTIONS else 1
        if len(found) < facts and len(pools[index]) >= size:
            values = tuple(pools[index].pop() for _ in range(size))
            found.append((person, ATTRIBUTES[index], values))
    return found


def _turn(draw: random.Random, said: str | None, wanted: tuple[str, str] | None) -> Turn:
    reply = " ".join(draw.sample(REPLIES, draw.randint(1, 3)))
    if wanted is not None:
        question, value = wanted
        lead = f"{_chatter(draw)} " if draw.random() < 0.3 else ""
        return Turn(f"{lead}{question}", reply, value)
    parts = [_chatter(draw) for _ in range(draw.randint(0 if said else 1, 2))]
    if said is not None:
        parts.insert(draw.randint(0, len(parts)), said)
    return Turn(" ".join(parts), reply)


def _chatter(draw: random.Random) -> str:
    return draw.choice(CHATTER).format(name=draw.choice(PEOPLE)[0])
